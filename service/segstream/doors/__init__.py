"""Who may come in and how much they may use: API keys, accounts, tickets, TLS."""
