"""Networks that several critics share, and how published weights are read into them."""
