"""Everything that knows a blockchain: the network client, signed requests, weights and a chain for the laboratory."""

from omega_lab.chain.auth import (
    AnswerReceipt,
    DevWallet,
    Gate,
    NonceStore,
    ReceiptError,
    Refused,
    dev_wallet,
    open_wallet,
    sign_request,
    sign_response,
    verify_receipt,
    verify_response,
)
from omega_lab.chain.link import ChainDown, ChainError, is_local
from omega_lab.chain.network import (
    LAB_VERSION,
    Chain,
    Hyperparameters,
    Metagraph,
    Neuron,
    Receipt,
    WeightsResult,
)
from omega_lab.chain.weights import WeightsCheck, compare, to_u16

__all__ = [
    "LAB_VERSION",
    "AnswerReceipt",
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
    "ReceiptError",
    "Refused",
    "WeightsCheck",
    "WeightsResult",
    "compare",
    "dev_wallet",
    "is_local",
    "open_wallet",
    "sign_request",
    "sign_response",
    "to_u16",
    "verify_receipt",
    "verify_response",
]
