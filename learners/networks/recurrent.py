"""Memory between encoder and head: an LSTM or GRU whose whole state is one float32 array.

One array, because that is what actors hand from step to step, what a row of replay keeps as ``recurrent_state``, and
what a learner starts a sequence from. An LSTM's state is h and c side by side, a GRU's is h. Fresh episodes start at 0.

LSTM: Hochreiter & Schmidhuber 1997, with forget gates (Gers et al. 2000); GRU: Cho et al. 2014, arXiv 1406.1078, in the
form of cuDNN (the reset gate acts behind the recurrent matrix).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from onibi.learners.networks.core_settings import CoreSettings, state_size
from onibi.learners.shapes import check_shapes


class RecurrentCore(nn.Module):
    """One recurrent layer. Acting step by step and unrolling in training run the same operations.

    Args:
        settings: cell, size, norm.
        features: F, width of the input.
    """

    def __init__(self, settings: CoreSettings, features: int) -> None:
        super().__init__()
        self.is_lstm = settings.cell == "lstm"
        self.cell: nn.LSTM | nn.GRU = (nn.LSTM if self.is_lstm else nn.GRU)(features, settings.size)
        self.norm = nn.LayerNorm(settings.size) if settings.layer_norm else nn.Identity()
        self.features = settings.size
        self.state_size = state_size(settings)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of every row.

        Args:
            features: [B, F] float32.
            state: [B, S] float32, before the step.
        Returns: output [B, H] and the next state [B, S], both float32. Raises: ValueError where shapes disagree.
        """
        outputs, state = self.unroll(features[None], state)
        return outputs[0], state

    def unroll(
        self, features: Tensor, state: Tensor, begins: Tensor | None = None, restart: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """T steps, with the state set anew where an episode piece begins.

        Args:
            features: [T, B, F] float32.
            state: [B, S] float32, before the first step.
            begins: [T, B] bool: the state before step t is not that after step t − 1; None: one piece each.
            restart: [T, B, S] float32, the state before step t where ``begins``, for instance the stored one: after
                a gap in an episode it is not 0. None: 0.
        Returns: outputs [T, B, H] and the state [B, S] after the last step, both float32. Gradients flow through time,
            within pieces. Raises: ValueError where shapes disagree.
        """
        check_shapes("T B F", features=features)
        check_shapes("B S", state=state)
        if state.shape != (features.shape[1], self.state_size):
            raise ValueError(f"state has shape {tuple(state.shape)}, wanted is {(features.shape[1], self.state_size)}")
        if begins is None:
            outputs, state = self._run(features, state)
            return self.norm(outputs), state
        check_shapes("T B", begins=begins)
        cuts = [0, *(at for at, cut in enumerate(begins.any(dim=1).tolist()) if at and cut), len(features)]
        parts = []
        for first, last in pairwise(cuts):
            fresh = torch.zeros_like(state) if restart is None else restart[first]
            state = torch.where(begins[first][:, None], fresh, state)
            outputs, state = self._run(features[first:last], state)
            parts.append(outputs)
        return self.norm(torch.cat(parts)), state

    def state_after(self, features: Tensor, state: Tensor, steps: Tensor | None, *, packed: bool = True) -> Tensor:
        """The state after so many steps, a number for each row: what a burn-in is for.

        Args:
            features: [T, B, F] float32; what lies behind ``steps`` is not read.
            state: [B, S] float32, before the first step.
            steps: [B] int64 from 0 to T, on the CPU where ``packed``; None: all T. Whoever knows that says so: to look
                here would cut a compiled loss in two.
            packed: one call of the cell, arranged by the host; else T calls that the host need not look into, as a CUDA
                graph wants it.
        Returns: [B, S] float32; ``state`` itself where ``steps`` is 0. Raises: ValueError where shapes disagree.
        """
        check_shapes("T B F", features=features)
        if len(features) == 0:
            return state
        if steps is None:
            return self._run(features, state)[1]
        check_shapes("B", steps=steps)
        if not packed:
            for at in range(len(features)):
                _, moved = self._run(features[at : at + 1], state)
                state = torch.where((at < steps)[:, None], moved, state)
            return state
        # Rows of 0 steps are run for one, for packing knows no empty rows; what comes of it is not taken.
        rows = pack_padded_sequence(features, steps.clamp(min=1), enforce_sorted=False)
        _, final = self.cell(rows, self._split(state))
        return torch.where((steps > 0).to(state.device)[:, None], self._joined(final), state)

    def _run(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, final = self.cell(features, self._split(state))
        return outputs.float(), self._joined(final)

    def _split(self, state: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self.is_lstm:
            return state[None]
        hidden, memory = state.chunk(2, dim=1)
        return hidden[None].contiguous(), memory[None].contiguous()

    def _joined(self, final: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if isinstance(final, Tensor):
            return final[0].float()
        return torch.cat((final[0][0], final[1][0]), dim=1).float()
