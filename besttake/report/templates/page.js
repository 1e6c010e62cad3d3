"use strict";

// Clips: the videos of a card start together and wait for each other; a card plays while it is on the screen.
const cards = [...document.querySelectorAll(".clips")];
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
let playing = !calm;
let speed = 1;

class Card {
  constructor(element) {
    this.videos = [...element.querySelectorAll("video")];
    this.seen = false;
    for (const video of this.videos) {
      video.loop = false;
      video.controls = false;
      video.addEventListener("ended", () => this.again());
    }
    this.videos[0].addEventListener("timeupdate", () => this.align());
  }
  align() { // a busy machine starts one video later than another: they are brought together again
    const [first, ...others] = this.videos;
    for (const video of others) {
      const apart = Math.abs(video.currentTime - first.currentTime);
      if (apart > 0.1 && !first.ended && !video.ended && !video.seeking) video.currentTime = first.currentTime;
    }
  }
  again() {
    if (this.videos.every((video) => video.ended || video.error)) this.start();
  }
  start() {
    for (const video of this.videos) video.currentTime = 0;
    this.follow();
  }
  follow() {
    for (const video of this.videos) {
      video.playbackRate = speed;
      if (!playing || !this.seen) video.pause();
      else if (!video.ended) video.play().catch(() => {}); // a pause that comes before the start rejects it
    }
    if (playing && this.seen && this.videos.every((video) => video.ended)) this.start();
  }
  show(seen) {
    if (seen && !this.seen) for (const video of this.videos) if (video.readyState) video.currentTime = 0;
    this.seen = seen;
    this.follow();
  }
}

const players = new Map(cards.map((element) => [element, new Card(element)]));
const follow = () => players.forEach((card) => card.follow());
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) players.get(entry.target).show(entry.isIntersecting);
});
cards.forEach((element) => watcher.observe(element));

const playButton = document.getElementById("play");
const slowButton = document.getElementById("slow");
if (playButton) {
  const label = () => { playButton.textContent = playing ? "Pause all" : "Play all"; };
  playButton.addEventListener("click", () => { playing = !playing; label(); follow(); });
  slowButton.addEventListener("click", () => {
    speed = speed === 1 ? 0.25 : 1;
    slowButton.setAttribute("aria-pressed", String(speed !== 1));
    follow();
  });
  label();
  playButton.parentElement.hidden = false;
}

// Charts: the values nearest to the pointer, or to the arrow keys.
for (const figure of document.querySelectorAll(".chart")) {
  const plot = figure.querySelector(".plot");
  const { box: [left, right], lines } = JSON.parse(figure.dataset.chart);
  const steps = [...new Set(lines.flatMap(([, , points]) => points.map(([x]) => x)))].sort((a, b) => a - b);
  const cursor = plot.appendChild(document.createElement("div"));
  const tip = plot.appendChild(document.createElement("div"));
  cursor.className = "cursor";
  tip.className = "tip";
  tip.setAttribute("role", "status");
  let at = -1;
  const hide = () => { at = -1; cursor.hidden = tip.hidden = true; };
  const show = (index) => {
    at = Math.min(Math.max(index, 0), steps.length - 1);
    const x = steps[at];
    const rows = lines.map(([name, , points]) => {
      const [step, , words] = points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      return `${lines.length > 1 ? name + " " : ""}${words}${step === x ? "" : ` at step ${step}`}`;
    });
    tip.replaceChildren(...[`step ${x}`, ...rows].map((text) => {
      const row = document.createElement("div");
      row.textContent = text;
      return row;
    }));
    cursor.hidden = tip.hidden = false;
    const place = (x - left) / (right - left) * plot.clientWidth;
    cursor.style.left = `${place}px`;
    const beside = place + 10 + tip.offsetWidth <= plot.clientWidth ? place + 10 : place - 10 - tip.offsetWidth;
    tip.style.left = `${Math.max(beside, -40)}px`;
  };
  const nearest = (event) => {
    const bounds = plot.getBoundingClientRect();
    const x = left + (event.clientX - bounds.left) / bounds.width * (right - left);
    show(steps.reduce((best, step, i) => (Math.abs(step - x) < Math.abs(steps[best] - x) ? i : best), 0));
  };
  plot.addEventListener("pointermove", nearest);
  plot.addEventListener("pointerdown", nearest);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (event.key === "Escape") hide();
    if (!move) return;
    event.preventDefault();
    show(at < 0 && move === 1 ? 0 : at < 0 && move === -1 ? steps.length - 1 : at + move);
  });
  hide();
}

// Paper: what is folded on the screen is printed as well.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => { for (const details of folded) details.open = false; });
