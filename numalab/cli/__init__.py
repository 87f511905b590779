"""The command line: one module per verb; nothing else imports this package."""
