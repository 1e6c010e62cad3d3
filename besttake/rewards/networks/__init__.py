"""Networks used by several critics, and loading of published weights."""
