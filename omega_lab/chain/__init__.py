"""Everything that knows a blockchain: the network client, signed requests, weights and a chain for the laboratory."""

from omega_lab.chain.auth import (
    DevWallet,
    Gate,
    NonceStore,
    Refused,
    dev_wallet,
    open_wallet,
    sign_request,
)
from omega_lab.chain.link import ChainDown, ChainError, is_local
from omega_lab.chain.network import (
    Chain,
    Hyperparameters,
    Metagraph,
    Neuron,
    Receipt,
    WeightsResult,
)
from omega_lab.chain.weights import WeightsCheck, compare, to_u16

__all__ = [
    "Chain",
    "ChainDown",
    "ChainError",
    "DevWallet",
    "Gate",
    "Hyperparameters",
    "Metagraph",
    "Neuron",
    "NonceStore",
    "Receipt",
    "Refused",
    "WeightsCheck",
    "WeightsResult",
    "compare",
    "dev_wallet",
    "is_local",
    "open_wallet",
    "sign_request",
    "to_u16",
]
