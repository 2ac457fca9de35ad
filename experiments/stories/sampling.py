"""How the next word of a story is drawn: sharp, without loops, and towards an ending."""

import torch


class StorySampling:
    """Temperature and min-p, a mild repetition penalty, no n-gram twice, and a pull to the end.

    pieces: the text of each token that may be drawn; end: the index of the end token in it.
    The penalty is that of CTRL (https://arxiv.org/abs/1909.05858), over written tokens only.
    """

    def __init__(
        self,
        pieces: list[str],
        end: int,
        device: str,
        temperature: float = 0.7,
        min_p: float = 0.05,
        penalty: float = 1.07,
        ngram: int = 6,
        end_after: int = 80,
        end_pull: float = 0.07,
    ):
        self.end, self.temperature, self.min_p = end, temperature, min_p
        self.penalty, self.ngram = penalty, ngram
        self.end_after, self.end_pull = end_after, end_pull
        closing = (".", "!", '."', '!"', '?"')
        self.closes = torch.tensor([p.endswith(closing) for p in pieces], device=device)
        self.quotes = torch.tensor([p.count('"') for p in pieces], device=device)

    def draw(self, logits: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """Indices [B] drawn from logits [B, A] (overwritten) after indices written [B, T]."""
        length = written.shape[1]
        if length:
            seen = logits.gather(1, written)
            seen = torch.where(seen > 0, seen / self.penalty, seen * self.penalty)
            logits.scatter_(1, written, seen)
        if length >= self.ngram:
            logits.scatter_add_(1, *self._repeats(written))
        if length > self.end_after:
            # after a whole sentence, outside quotes, an end grows likelier with every token
            may_end = self.closes[written[:, -1]] & (self.quotes[written].sum(1) % 2 == 0)
            logits[:, self.end] += may_end * ((length - self.end_after) * self.end_pull)
        probs = torch.softmax(logits / self.temperature, dim=-1)
        probs.masked_fill_(probs < self.min_p * probs.amax(-1, keepdim=True), 0.0)
        # argmax(p / Exp(1)) is a draw from p, an exponential race: no sort, no cumulative sum
        return (probs / torch.empty_like(probs).exponential_()).argmax(-1)

    def _repeats(self, written: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices [B, W] that followed an earlier copy of the last n-1, and what to add to each."""
        windows = written.unfold(1, self.ngram, 1)  # [B, W, n]
        tail = written[:, None, written.shape[1] - self.ngram + 1 :]  # [B, 1, n-1]
        repeats = (windows[..., :-1] == tail).all(-1)
        return windows[..., -1], torch.where(repeats, -1e4, 0.0)
