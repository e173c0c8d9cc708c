"""Recurrent networks for token sequences: an LSTM encoder and LSTM decoders.

x is a matrix of token numbers, zeros on the right being padding, and
p(x|z) = prod_t p(x_t | x_<t, z) over what is no padding. A decoder gives the
log-probabilities of the tokens that were observed, ``(R, B, p)`` with zeros at the
padding: a softmax over the whole vocabulary at every place would not fit in memory.
Padding itself is never predicted, so that there are V - 1 classes, and its number
stands for the start of the sequence where the decoder reads what came before.

Shapes inside: R replicas, T steps, B rows, n units. Replicas share no parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from numbers import Integral, Real

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from skvae._products import products
from skvae._random import generator
from skvae._spec import Specification
from skvae._tokens import END, MIN_TOKENS, PADDING, UNKNOWN
from skvae._validation import Interval, StrOptions
from skvae.networks._layers import OUTPUT_GAIN, Linear, normal_weights
from skvae.networks._sequence_outputs import INJECTIVE_OUTPUTS, OUTPUTS

# Numbers of the largest temporary array where no gradient is asked for.
SLICE_ELEMENTS = 1 << 23
EMBEDDING_STD = 0.1
# Streams of random numbers that a step's seed is split into.
WORDS, VECTORS, STATES = range(3)


def longest(x: Tensor) -> int:
    """Steps up to the last token of any row, at least one."""
    used = (x != PADDING).flatten(0, -2).any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def by_rows(function, numbers_per_row: int, x: Tensor, *others: Tensor) -> Tensor:
    """``function(x, *others)`` over the rows, in parts where no gradient is asked for.

    A part holds rows of like length, with little padding.
    """
    rows = max(1, SLICE_ELEMENTS // numbers_per_row)
    if torch.is_grad_enabled() or x.shape[1] <= rows:
        return function(x, *others)
    steps = torch.arange(1, x.shape[-1] + 1, device=x.device)
    lengths = ((x != PADDING) * steps).amax(-1).amax(0)
    order = torch.argsort(lengths, stable=True)
    parts = [
        function(*(tensor[:, chosen] for tensor in (x, *others)))
        for chosen in order.split(rows)
    ]
    return torch.cat(parts, dim=1)[:, torch.argsort(order)]


class Embedding(nn.Module):
    """One vector per token and replica, ``(R, T, B)`` integers to ``(R, T, B, n)``."""

    def __init__(self, n_tokens: int, size: int, generators: Sequence[Generator]):
        super().__init__()
        self.weight = normal_weights(generators, n_tokens, size, std=EMBEDDING_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        pairs = zip(tokens, self.weight, strict=True)
        return torch.stack([embedding(t, weight) for t, weight in pairs])


class LSTM(nn.Module):
    """One layer of R long short-term memories (Hochreiter, Schmidhuber 1997)."""

    stackable = False

    def __init__(self, n_in: int, width: int, generators: Sequence[Generator]):
        super().__init__()
        self.width = width
        self.inward = Linear(n_in, 4 * width, generators)
        self.recurrent = normal_weights(
            generators, width, 4 * width, std=1.0 / math.sqrt(width)
        )
        with torch.no_grad():
            # A forget gate that starts open, so that early tokens are heard at all.
            self.inward.bias[..., width : 2 * width] = 1.0

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """States after each input ``(R, T, B, n_in)``, shape ``(R, T, B, width)``."""
        if inputs.shape[0] == 1 and inputs.device.type == "cpu":
            return self._fused(inputs, hidden, cell)
        n_replicas, n_steps, n_rows, _ = inputs.shape
        gates = products(inputs.flatten(1, 2), self.inward.weight, self.inward.bias)
        gates = gates.view(n_replicas, n_steps, n_rows, -1)
        states = []
        for given in gates.unbind(1):
            hidden, cell = self._advance(given, hidden, cell)
            states.append(hidden)
        return torch.stack(states, dim=1)

    def step(self, inputs: Tensor, hidden: Tensor, cell: Tensor):
        """Hidden state and cell after one input ``(R, B, n_in)``."""
        return self._advance(self.inward(inputs), hidden, cell)

    def _advance(self, given, hidden, cell):
        total = given + torch.bmm(hidden, self.recurrent)
        enter, forget, new, leave = total.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        return torch.sigmoid(leave) * torch.tanh(cell), cell

    def _fused(self, inputs, hidden, cell):
        bias = self.inward.bias.view(-1)
        weights = (
            self.inward.weight[0].t(),
            self.recurrent[0].t(),
            bias,
            torch.zeros_like(bias),
        )
        start = hidden.contiguous(), cell.contiguous()
        states = torch.lstm(
            inputs[0], start, weights, True, 1, 0.0, self.training, False, False
        )
        return states[0].unsqueeze(0)


class LSTMEncoder(Specification):
    """Read the document; its last hidden state gives the posterior.

    Parameters
    ----------
    n_tokens : int, default=4
        Size of the vocabulary, padding included.
    embedding_size : int, default=128
        Length of the word vectors.
    width : int, default=256
        Units of the LSTM.
    """

    family = "network"
    _parameter_constraints: dict = {
        "n_tokens": [Interval(Integral, MIN_TOKENS, None, closed="left")],
        "embedding_size": [Interval(Integral, 1, None, closed="left")],
        "width": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, n_tokens=MIN_TOKENS, embedding_size=128, width=256):
        self.n_tokens = n_tokens
        self.embedding_size = embedding_size
        self.width = width

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas, one generator each."""
        return LSTMEncoderNetwork(
            n_out, generators, self.n_tokens, self.embedding_size, self.width
        )


class LSTMEncoderNetwork(nn.Module):
    """``(R or 1, B, p)`` token numbers to ``(R, B, n_out)``."""

    def __init__(self, n_out, generators, n_tokens, embedding_size, width):
        super().__init__()
        self.embedding = Embedding(n_tokens, embedding_size, generators)
        self.lstm = LSTM(embedding_size, width, generators)
        self.output = Linear(width, n_out, generators, gain=OUTPUT_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.output.weight), -1, -1)
        return by_rows(self._encode, x.shape[-1] * 6 * self.lstm.width, x)

    def _encode(self, x: Tensor) -> Tensor:
        tokens = x[..., : longest(x)].long()
        steps = torch.arange(1, tokens.shape[-1] + 1, device=x.device)
        last = ((tokens != PADDING) * steps).amax(-1) - 1
        inputs = self.embedding(tokens.transpose(1, 2))
        start = inputs.new_zeros(*last.shape, self.lstm.width)
        states = self.lstm(inputs, start, start)
        chosen = last.clamp_min(0)[:, None, :, None].expand(-1, -1, -1, start.shape[-1])
        return self.output(states.gather(1, chosen).squeeze(1))


class LSTMDecoder(Specification):
    """Predict each token from those before it and from z.

    Parameters
    ----------
    n_tokens : int, default=4
        Size of the vocabulary, padding included.
    embedding_size : int, default=128
        Length of the word vectors.
    width : int, default=256
        Units of the LSTM.
    conditioned : bool, default=True
        Whether the LSTM sees z: beside every word vector and in its first state.
    output : {"affine", "skip", "anchored", "brenier"}, default="affine"
        From the LSTM's state, and z but for "affine", to the logits of the tokens.
    inverse_lipschitz : float, default=0.3
        For "anchored" and "brenier", lower bound enforced on the change of a token's
        log-probabilities per change of z.
    dropout : float, default=0.0
        Share of the entries of word vectors and states set to zero in training.
    word_dropout : float, default=0.0
        Share of the words that the decoder is not told in training.
    """

    family = "network"
    _parameter_constraints: dict = {
        "n_tokens": [Interval(Integral, MIN_TOKENS, None, closed="left")],
        "embedding_size": [Interval(Integral, 1, None, closed="left")],
        "width": [Interval(Integral, 1, None, closed="left")],
        "conditioned": ["boolean"],
        "output": [StrOptions({*OUTPUTS, *INJECTIVE_OUTPUTS})],
        "inverse_lipschitz": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "word_dropout": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        n_tokens=MIN_TOKENS,
        embedding_size=128,
        width=256,
        conditioned=True,
        output="affine",
        inverse_lipschitz=0.3,
        dropout=0.0,
        word_dropout=0.0,
    ):
        self.n_tokens = n_tokens
        self.embedding_size = embedding_size
        self.width = width
        self.conditioned = conditioned
        self.output = output
        self.inverse_lipschitz = inverse_lipschitz
        self.dropout = dropout
        self.word_dropout = word_dropout

    def build(self, n_in: int, n_out: int, generators: Sequence[Generator]):
        """Make the module for R replicas and `n_out` steps, one generator each."""
        if self.output in INJECTIVE_OUTPUTS:
            return InjectiveLSTMDecoderNetwork(n_in, n_out, generators, self)
        return LSTMDecoderNetwork(n_in, n_out, generators, self)


class LSTMDecoderNetwork(nn.Module):
    """``(R, B, d)`` codes and ``(R or 1, B, p)`` tokens to their log-probabilities."""

    autoregressive = True
    outputs = OUTPUTS

    def __init__(self, n_in, n_steps, generators, specification):
        super().__init__()
        width, size = specification.width, specification.embedding_size
        self.n_tokens, self.n_steps = specification.n_tokens, n_steps
        self.dropout = specification.dropout
        self.word_dropout = specification.word_dropout
        self.conditioned = specification.conditioned
        self.embedding = Embedding(self.n_tokens, size, generators)
        n_seen = n_in if self.conditioned else 0
        self.lstm = LSTM(size + n_seen, width, generators)
        self.start = Linear(n_seen, width, generators)
        self.output = self.outputs[specification.output](
            n_in, width, self.n_tokens - 1, generators, specification.inverse_lipschitz
        )
        self._seeds = None

    @torch.no_grad()
    def align(self, x: Tensor, weight: Tensor) -> None:
        """Start from the frequencies of the tokens in rows ``(n, p)`` of x."""
        counts = torch.bincount(
            x.long().flatten(),
            weight.unsqueeze(-1).expand_as(x).flatten(),
            minlength=self.n_tokens,
        )[1:]
        share = (counts + 1.0) / (counts + 1.0).sum()
        self.output.align(share)

    @contextmanager
    def perturbed(self, noise: Tensor):
        """Within this block tokens and units are dropped, as `noise` decides.

        Each replica's first number of the step's noise ``(R, ...)`` seeds its masks:
        no stream has to be kept for them, and R replicas fare as each would alone.
        """
        first = noise.detach().flatten(1)[:, 0].float().contiguous()
        self._seeds = first.view(torch.int32).tolist()
        try:
            yield
        finally:
            self._seeds = None

    def _kept(self, like: Tensor, share: float, stream: int) -> Tensor | None:
        """A mask of the shape of `like`, True with probability 1 - share."""
        if self._seeds is None or share == 0:
            return None
        draws = []
        for seed in self._seeds:
            # Step after step, so that more steps draw the same numbers first.
            numbers = generator(3 * abs(seed) + stream)
            draws.append(torch.rand(like.shape[1:], generator=numbers))
        return (torch.stack(draws) >= share).to(like.device)

    def _thinned(self, values: Tensor, stream: int) -> Tensor:
        kept = self._kept(values, self.dropout, stream)
        return values if kept is None else values * kept / (1.0 - self.dropout)

    def _first_state(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden state and cell before the first token, ``(R, B, width)``."""
        seen = z if self.conditioned else z[..., :0]
        cell = self.start(seen)
        return torch.tanh(cell), cell

    def _inputs(self, z: Tensor, previous: Tensor) -> Tensor:
        """What the LSTM reads for the tokens before, ``(R, T, B, n)``."""
        kept = self._kept(previous, self.word_dropout, WORDS)
        if kept is not None:
            kept |= previous == PADDING
            previous = torch.where(kept, previous, UNKNOWN)
        vectors = self._thinned(self.embedding(previous), VECTORS)
        if not self.conditioned:
            return vectors
        codes = z.unsqueeze(1).expand(-1, previous.shape[1], -1, -1)
        return torch.cat([vectors, codes], dim=-1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        n_replicas = len(self.embedding.weight)
        x = x.expand(n_replicas, -1, -1)
        z = z.expand(n_replicas, -1, -1)
        per_step = max(self.n_tokens, 6 * self.lstm.width)
        return by_rows(self._decode, x.shape[-1] * per_step, x, z)

    def _decode(self, x: Tensor, z: Tensor) -> Tensor:
        observed = x[..., : longest(x)].long().transpose(1, 2)
        previous = torch.cat([torch.zeros_like(observed[:, :1]), observed[:, :-1]], 1)
        states = self.lstm(self._inputs(z, previous), *self._first_state(z))
        logits = self.output(self._thinned(states, STATES), z)
        # Padding has no class: its places get any, and their terms are struck out.
        classes = (observed - 1).clamp_min(0)
        losses = cross_entropy(
            logits.flatten(0, 2), classes.flatten(), reduction="none"
        )
        terms = torch.where(observed == PADDING, 0.0, -losses.view(observed.shape))
        missing = x.shape[-1] - observed.shape[1]
        return nn.functional.pad(terms.transpose(1, 2), (0, missing))

    def log_probabilities(self, z: Tensor, x: Tensor) -> Tensor:
        """Log p(token | x_<t, z) of every token but padding, ``(R, B, p, V - 1)``."""
        observed = x.expand(len(z), -1, -1).long().transpose(1, 2)
        previous = torch.cat([torch.zeros_like(observed[:, :1]), observed[:, :-1]], 1)
        states = self.lstm(self._inputs(z, previous), *self._first_state(z))
        return torch.log_softmax(self.output(states, z), dim=-1).transpose(1, 2)

    def generate(self, z: Tensor, likelihood, generator: Generator | None) -> Tensor:
        """Token after token up to the end token: drawn, or the likeliest without one.

        Returns ``(R, B, p)``, padded with zeros.
        """
        hidden, cell = self._first_state(z)
        token = torch.zeros(z.shape[:2], dtype=torch.long, device=z.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        tokens = []
        for _ in range(self.n_steps):
            inputs = self._inputs(z, token.unsqueeze(1)).squeeze(1)
            hidden, cell = self.lstm.step(inputs, hidden, cell)
            logits = self.output(hidden.unsqueeze(1), z).squeeze(1)
            if generator is None:
                token = 1 + logits.argmax(-1)
            else:
                shares = torch.softmax(logits, dim=-1).flatten(0, 1).cpu()
                drawn = torch.multinomial(shares, 1, generator=generator)
                token = 1 + drawn.view(token.shape).to(z.device)
            token = torch.where(ended, PADDING, token)
            ended |= token == END
            tokens.append(token)
        return torch.stack(tokens, dim=-1).to(z.dtype)


class InjectiveLSTMDecoderNetwork(LSTMDecoderNetwork):
    """One whose log-probabilities tell any two codes apart."""

    outputs = INJECTIVE_OUTPUTS

    def inverse_lipschitz(self) -> Tensor:
        """Lower bound on the slope of z to a token's log p, shape ``(R,)``."""
        return self.output.certificate()


__all__ = ["LSTMDecoder", "LSTMEncoder"]
