"""What a pruned model should give, by full forwards of the unpruned one: no cache, no padding, a row at a time."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import by_hand
import models
import torch

from vtkernels.integrations import Record


def joined(records):
    """One record of the images of several calls."""
    return Record(**{f.name: [entry for record in records for entry in getattr(record, f.name)] for f in fields(Record)})


class FullForward:
    """Prompts built by hand, with positions and mask always explicit.

    Args:
        model: not pruned while this is used.
        prompts, x: as in :func:`models.inputs`.
        pruning: says what was kept, and of which kind the positions are.
        records: those of several calls, if not ``pruning.last``.
        positions: another kind.
    """

    def __init__(self, model, prompts, x, pruning, *, records=None, positions=None):
        options = replace(pruning.options, positions=positions or pruning.options.positions)
        kept = SimpleNamespace(last=pruning.last if records is None else joined(records), options=options)
        self.model = model
        self.rows = []
        for prompt, (embeds, places) in zip(prompts, by_hand.sequences(model, prompts, x, kept), strict=True):
            if places is None:
                self.rows.append((embeds, torch.arange(embeds.shape[1])[None], embeds.shape[1]))
            else:
                sizes = [len(models.packed(model, word).tokens) if models.is_visual(word) else 1 for word in prompt]
                self.rows.append((embeds, places, sum(sizes)))

    def lengths(self):
        return [embeds.shape[1] for embeds, _, _ in self.rows]

    def logits(self, row=0, more=(), places=None):
        """[L, V] of a row with the ids ``more`` behind it, whose positions follow those of the prompt."""
        embeds, own, end = self.rows[row]
        if len(more):
            more = torch.as_tensor(more)
            embeds = torch.cat([embeds, self.model.get_input_embeddings()(more)[None]], dim=1)
            own = torch.cat([own, torch.arange(end, end + len(more))[None]], dim=1)
        own = own if places is None else places
        mask = torch.ones(own.shape, dtype=torch.long)
        return self.model(inputs_embeds=embeds, attention_mask=mask, position_ids=own, use_cache=False).logits[0]

    def greedy(self, n):
        """int64 [rows, n]."""
        answers = [[] for _ in self.rows]
        for row, answer in enumerate(answers):
            for _ in range(n):
                answer.append(int(self.logits(row, answer)[-1].argmax()))
        return torch.tensor(answers)

    def beams(self, n, width):
        """int64 [rows, n]: the best of ``width`` hypotheses of equal length."""
        best = []
        for row in range(len(self.rows)):
            beams = [(0.0, [])]
            for _ in range(n):
                grown = []
                for score, answer in beams:
                    values = self.logits(row, answer)[-1].log_softmax(-1)
                    grown += [(score + float(values[i]), [*answer, int(i)]) for i in values.topk(width).indices]
                beams = sorted(grown, key=lambda beam: -beam[0])[:width]
            best.append(beams[0][1])
        return torch.tensor(best)

    def samples(self, n, sequences):
        """int64 [rows * sequences, n]: one draw of torch's generator for each step of all sequences."""
        answers = [[] for _ in range(len(self.rows) * sequences)]
        for _ in range(n):
            last = torch.stack([self.logits(i // sequences, answer)[-1] for i, answer in enumerate(answers)])
            for answer, token in zip(answers, torch.multinomial(last.softmax(-1), 1)[:, 0].tolist(), strict=True):
                answer.append(token)
        return torch.tensor(answers)
