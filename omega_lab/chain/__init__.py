"""Everything that knows a blockchain: the network client, signed requests, weights and a chain for the laboratory."""
