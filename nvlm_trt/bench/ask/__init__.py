"""Whatever can be asked a question and timed: an engine in this process, a server, the torch reference."""
