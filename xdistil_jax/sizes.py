"""Sizes of teachers and students: their parameters, and their FLOPs by arithmetic. Imports no jax.

A product of [m, k] and [k, n] is 2 m k n FLOPs; what is not a product of matrices is not counted.
A slot is a piece of text or of padding: what a chip computes. In a training step a product costs,
beside its forward pass, as much again for the gradient of its weights, if they are trained, and for
that of its input, if something is trained that this comes from. What no loss reads isn't computed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherSizes:
    """Sizes of an encoder; ``fine_tuned``: is it to be trained first?

    ``products`` is the number of matrices D × F in a feed-forward block (3 where it is gated),
    ``places`` the number of relative places that each query or key is multiplied with, ``cached``
    the number of layers whose states are kept.
    """

    name: str
    vocab: int
    width: int
    layers: int
    feed_forward: int
    products: int = 2
    places: int = 0
    embedding_width: int = 0
    fine_tuned: bool = True
    cached: int = 1

    @property
    def parameters(self) -> int:
        """Of the products and the table of pieces: all but about a hundredth."""
        table = self.vocab * (self.embedding_width or self.width)
        return table + self.layers * self._weights + self.embedding_width * self.width

    @property
    def _weights(self) -> int:
        return self.width * (4 * self.width + self.products * self.feed_forward)

    def forward(self, classes: int, width: float) -> float:
        """FLOPs a slot of the forward pass over rows of ``width``."""
        attention = 4 * self.width * width + 2 * self.width * self.places
        outside = self.embedding_width * self.width + self.width * classes
        return self.layers * (2 * self._weights + attention) + 2 * outside


@dataclass(frozen=True)
class BiLSTMSizes:
    """Sizes of a BiLSTM; ``source_width`` > 0 in training by a factored embedding.

    ``projections`` is the number of the teacher's layers that it imitates.
    """

    vocab: int
    embed: int
    hidden: int
    teacher_width: int
    classes: int
    head_on: str = "projection"
    source_width: int = 0
    projections: int = 1

    @property
    def groups(self) -> tuple[str, ...]:
        """Of its parameters, from top to bottom."""
        return ("head", "projection", "bilstm", "embed")

    @property
    def _head_width(self) -> int:
        return self.teacher_width if self.head_on == "projection" else 2 * self.hidden

    def parameters(self) -> dict[str, int]:
        """Group -> parameters, as trained."""
        E, H, D = self.embed, self.hidden, self.teacher_width
        return {
            "head": self.classes * (self._head_width + 1),
            "projection": self.projections * (2 * H + 1) * D,
            "bilstm": 8 * H * (E + H + 1),
            "embed": (self.vocab + self.source_width) * E,
        }

    def step(
        self, trained: frozenset[str], width: float, *, logits: bool = True, states: bool = False
    ) -> float:
        """FLOPs a slot of a step in which only the groups in ``trained`` change.

        Without any, of the forward pass. The losses read ``logits`` or ``states``. The recurrence
        has both of its gradients in one, at any ``width`` of the rows; a piece's row costs no
        product.
        """
        E, H = self.embed, self.hidden
        below, through = bool({"bilstm", "embed"} & trained), self.head_on == "projection"
        head = self.classes * self._head_width if logits else 0
        count = self.projections if states else int(logits and through)
        beside = below or (through and "projection" in trained)
        return 2.0 * (
            head * (1 + ("head" in trained) + beside)
            + count * 2 * H * self.teacher_width * (1 + ("projection" in trained) + below)
            + 8 * H * (E + H) * (1 + 2 * below)
            + self.source_width * E * (1 + ("embed" in trained))
        )


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a transformer student: those of its encoder, and of its projections.

    ``imitated`` is the number of the teacher's layers that it imitates, from its last layer down;
    ``projects``: are they of another width? The other names are those of ``EncoderSpec``.
    """

    vocab: int
    width: int
    layers: int
    feed_forward: int
    teacher_width: int
    classes: int
    positions: int
    token_types: int = 0
    embedding_width: int = 0
    pre_norm: bool = False
    pooler: bool = False
    imitated: int = 1
    source_width: int = 0

    @property
    def projects(self) -> bool:
        """Are the states brought to another width?"""
        return bool(self.imitated) and self.teacher_width != self.width

    @property
    def groups(self) -> tuple[str, ...]:
        """Of its parameters, from top to bottom."""
        above = (*("projection",) * self.projects, *("norm",) * self.pre_norm)
        return ("head", *above, *(f"layer_{n}" for n in range(self.layers, 0, -1)), "embed")

    def parameters(self) -> dict[str, int]:
        """Group -> parameters, as trained."""
        D, F, E = self.width, self.feed_forward, self.embedding_width or self.width
        rows = self.vocab + self.positions + self.token_types + 2 * (not self.pre_norm)
        found = {
            "head": self.classes * (D + 1) + self.pooler * D * (D + 1),
            "projection": self.imitated * (D + 1) * self.teacher_width,
            "norm": 2 * D,
            **{f"layer_{n + 1}": 4 * D * (D + 2) + 2 * D * F + F + D for n in range(self.layers)},
            "embed": rows * E + (E != D) * (E + 1) * D + self.source_width * E,
        }
        return {group: found[group] for group in self.groups}

    def step(
        self, trained: frozenset[str], width: float, *, logits: bool = True, states: bool = False
    ) -> float:
        """FLOPs a slot of a step over rows of ``width``; see ``BiLSTMSizes.step``."""
        D, E = self.width, self.embedding_width
        weights, mixing = D * (4 * D + 2 * self.feed_forward), 4 * D * width
        moved = ["embed" in trained]
        flops = 2.0 * D * (E * (1 + 2 * moved[0]) + self.source_width * (1 + moved[0]))
        for number in range(1, self.layers + 1):
            below, own = moved[-1], f"layer_{number}" in trained
            moved.append(below or own)
            # The lowest that is trained needs no gradient of its input, which query, key and value
            # are made of, but all those between its products.
            inputs = weights if below else (weights - 3 * D * D) * own
            flops += 2.0 * (weights * (1 + own) + inputs) + mixing * (1 + 2 * moved[-1])
        top = moved[-1] or "norm" in trained
        if logits:
            head = D * (self.classes + self.pooler * D)
            inner = self.pooler * D * self.classes * ("head" in trained and not top)
            flops += 2.0 * (head * (1 + ("head" in trained) + top) + inner)
        if states and self.projects:
            for number in range(self.imitated):
                under = top if number == 0 else moved[self.layers - number]
                times = 1 + ("projection" in trained) + under
                flops += 2.0 * D * self.teacher_width * times
        return flops


StudentSizes = BiLSTMSizes | TransformerSizes
