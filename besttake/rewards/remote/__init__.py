"""Critics that run elsewhere: over HTTP, in an environment of their own, or as a judge behind a chat API."""
