"""Break-a-Scene on one exemplar: a new token, then a small change of weights, under the mask of the concept.

Turns exemplars (`ard.exemplars`) into deltas (`ard.deltas`) for `ard.generate`; the paper's section 4.1, FACTS of the
released code: token-only phase, weights phase, masked diffusion loss, cross-attention loss, union sampling, mirroring.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ard.adapters import layout, layout_hash, learned_rows, learned_weights
from ard.attention import attention_loss, masked_loss, plain_attention, resize_mask, stored_attention
from ard.deltas import Delta, installed_tokens, rounded
from ard.files import sha256_bytes
from ard.templates import fill, with_article

ATTENTION = r"^unet\..*attn[12]\.to_(q|k|v|out\.0)$"
MODULES = {  # what LoRA may change, by name
    "kv": r"^unet\..*attn2\.to_[kv]$",  # Custom Diffusion's choice
    "cross": r"^unet\..*attn2\.to_(q|k|v|out\.0)$",
    "attn": ATTENTION,
    "attn+text": rf"{ATTENTION}|^text_encoder\..*(q|k|v|out)_proj$",
    "attn+ff": rf"{ATTENTION}|^unet\..*ff\.net\.(0\.proj|2)$",
    "attn+ff+proj": rf"{ATTENTION}|^unet\..*(ff\.net\.(0\.proj|2)|proj_(in|out))$",
    "conv": r"^unet\..*resnets.*conv[12]$",
    "attn+conv": rf"{ATTENTION}|^unet\..*resnets.*conv[12]$",
    # where nine tenths of the squared change of attn+conv end up, with three fifths of its numbers
    "up": r"^unet\.(up_blocks\..*attn[12]\.to_(q|k|v|out\.0)|(mid_block|up_blocks)\..*resnets.*conv[12])$",
}


@dataclass(frozen=True)
class CustomizeConfig:
    """Settings of one customisation; the defaults fit the mini generator, published values stand beside them."""

    mode: str = "lora"  # lora | kv | full (published: full; its delta is too large to keep) | token
    modules: str = ATTENTION  # searched in module names; used by lora
    rank: int = 1
    prompts: tuple[str, ...] = ("A photo of {}.",)  # one is drawn for each image of a batch
    token_steps: int = 40  # published 400
    token_lr: float = 5e-3  # published 5e-4
    weight_steps: int = 60  # published 400
    weight_lr: float = 2e-3  # published 2e-6 with full weights
    lr_end: float = 0.1  # share of the rate at the last step of a phase, reached linearly; published 1
    batch: int = 8  # noise draws of the same latents in a step; published 1
    loss: str = "area"  # area | published
    mask_resize: str = "area"  # area | nearest (published) | max
    attention_weight: float = 1e-2
    attention_resolution: int = 0  # positions a side; 0 is the largest there is, published 16
    prior_weight: float = 0.0  # published 1
    keep: float = 0.0  # weight of staying with the base model outside the mask; published 0
    flip: float = 0.0  # share of steps that show the exemplar mirrored; a small model then draws it with two faces
    frame: float = 0.0  # share of the picture that the individual's box is brought to, in the middle; published 0, as it is
    weight_decay: float = 1e-2
    clip: float = 1.0
    bf16: bool = False


@dataclass(frozen=True, eq=False)
class Concept:
    """One thing to learn: its new token, the name of its class, its mask (H, W) bool in the exemplar image."""

    token: str
    class_name: str
    mask: np.ndarray

    @property
    def noun(self) -> str:
        return f"{self.token} {self.class_name}"


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learned together in one delta: the concepts of one exemplar image (H, W, 3) uint8, and a seed."""

    image: np.ndarray
    concepts: Sequence[Concept]
    seed: int


def customize(pipe, image: np.ndarray, concepts: Sequence[Concept], config: CustomizeConfig, seed: int,
              prior: tuple[str, Tensor] | None = None) -> Delta:
    """Learn `concepts` from `image` (H, W, 3) uint8 and return the delta; the pipeline itself is left as it was.

    pipe: a StableDiffusionPipeline or alike, epsilon- or v-prediction. prior: a prompt and latents (n, C, h, w) of
    what the base model makes of it (prior preservation). Equal seeds give equal bytes. Raises ValueError on an unusable
    exemplar.
    """
    return customize_together(pipe, [Lesson(image, concepts, seed)], config, prior)[0]


def customize_together(pipe, lessons: Sequence[Lesson], config: CustomizeConfig,
                       prior: tuple[str, Tensor] | None = None) -> list[Delta]:
    """`customize` for several lessons side by side: each has its own token, weights, noise and gradient, and all share the
    passes through the frozen model, which is most of the time. Up to rounding, the deltas are those of lessons alone.

    The lessons need equally many concepts with the same tokens, and a mode that leaves the frozen weights alone.
    """
    for lesson in lessons:
        check_lesson(lesson, config, prior)
    tokens = [c.token for c in lessons[0].concepts]
    if any([c.token for c in lesson.concepts] != tokens for lesson in lessons) or (prior and len(lessons) > 1):
        raise ValueError("lessons learned together need the same tokens, and no prior")
    generators = [torch.Generator().manual_seed(lesson.seed) for lesson in lessons]
    models = [pipe.unet, pipe.text_encoder, pipe.vae]
    frozen = [(p, p.requires_grad) for m in models for p in m.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    rows = nn.Parameter(torch.stack([class_rows(pipe, [c.class_name for c in lesson.concepts]) for lesson in lessons]))
    parts = layout(pipe, config.mode, config.modules, config.rank)
    try:
        with ExitStack() as stack:
            ids = stack.enter_context(installed_tokens(pipe, tokens, rows[0].detach()))
            stack.enter_context(learned_rows(pipe.text_encoder, ids, rows))
            task = _Task(pipe, lessons, ids, config, generators, prior)
            history = task.fit([rows], config.token_lr, config.token_steps)
            weights, change = stack.enter_context(learned_weights(pipe, config.mode, parts, generators))
            if weights:
                history += task.fit([rows, *weights], config.weight_lr, config.weight_steps)
            vectors = change()
    finally:
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)
    shared = {"tokens": tokens, "mode": config.mode, "modules": config.modules, "rank": config.rank, "layout": layout_hash(parts)}
    sixths = [np.mean(h, 0) for h in np.array_split(history, 6)] if len(history) >= 6 else []
    return [
        Delta(rows[g].detach().cpu().half(), rounded(vectors[g]), {
            **shared, "words": [c.class_name for c in lesson.concepts], "seed": lesson.seed,
            "loss": [round(float(mean[g]), 4) for mean in sixths]})
        for g, lesson in enumerate(lessons)
    ]


def class_rows(pipe, class_names: Sequence[str]) -> Tensor:
    """Embeddings (n, width) of each name's first sub-token, where Break-a-Scene starts its new tokens."""
    table = pipe.text_encoder.get_input_embeddings().weight
    ids = [pipe.tokenizer(name, add_special_tokens=False).input_ids[0] for name in class_names]
    return table[ids].detach().float().clone()


@dataclass(frozen=True, eq=False)
class _Draw:
    """One step of one lesson: what is shown of it and under which noise, B samples."""

    view: Tensor  # (B,) 1 where the mirrored view is shown
    present: Tensor  # (B, n) bool, the concepts of the prompt
    which: list[int]  # (B,) index of the prompt's form
    times: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)


class _Task:
    """The losses of lessons learned together: everything that does not change between steps is encoded once."""

    def __init__(self, pipe, lessons: Sequence[Lesson], ids, config: CustomizeConfig, generators, prior):
        self.pipe, self.lessons, self.ids, self.config, self.generators = pipe, lessons, ids, config, generators
        self.device = pipe.unet.device
        self.concepts = len(lessons[0].concepts)
        latents, masks = [], []
        for lesson in lessons:
            image, mask = framed(lesson.image, np.stack([c.mask for c in lesson.concepts]), config.frame)
            latents.append(encode(pipe, np.stack([image, image[:, ::-1]])))  # as it is, mirrored
            mask = torch.from_numpy(mask).float().to(self.device)
            masks.append(torch.stack([mask, mask.flip(-1)]))  # (2, n, H, W)
        self.latents, self.masks = latents, masks
        self.cache: dict[str, Tensor] = {}  # tokenised prompts
        # the base model as it was: a small change of weights is shared by all places, so it must be told where to stop
        self.base = copy.deepcopy(pipe.unet) if config.keep else None
        self.plain = {} if self.base is None else self._plain_texts()
        self.prior = prior
        if prior is not None and config.prior_weight:
            self.prior_ids = self._tokens([prior[0]])

    def fit(self, parameters: list[nn.Parameter], lr: float, steps: int) -> list[list[float]]:
        """Run `steps` of AdamW on `parameters`; returns the losses of the lessons at every step."""
        if not steps:
            return []
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=self.config.weight_decay, eps=1e-8)
        history = []
        wanted = self.config.attention_weight > 0
        with ExitStack() as stack:
            stack.enter_context(plain_attention(self.pipe.unet))
            maps = stack.enter_context(stored_attention(self.pipe.unet, self.config.attention_resolution)) if wanted else None
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = lr * (1 - (1 - self.config.lr_end) * step / steps)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                    losses = self.losses(maps)
                optimizer.zero_grad(set_to_none=True)
                losses.sum().backward()
                clip_each(parameters, self.config.clip, len(self.lessons))
                optimizer.step()
                history.append(losses.tolist())
        if not np.isfinite(history).all() or not all(p.isfinite().all() for p in parameters):
            raise ValueError(f"customisation diverged: loss {history[-1]} at rate {lr}; lower the learning rate")
        return history

    def losses(self, maps) -> Tensor:
        """One loss for each lesson, (G,)."""
        config, draws = self.config, [self._draw(g) for g in range(len(self.lessons))]
        ids = torch.cat([self._tokens([self._prompt(lesson, p, w) for p, w in zip(draw.present.tolist(), draw.which)])
                         for lesson, draw in zip(self.lessons, draws)])
        latents = torch.cat([each[draw.view] for each, draw in zip(self.latents, draws)])
        times, noise = (torch.cat([getattr(draw, name) for draw in draws]).to(self.device) for name in ("times", "noise"))
        prediction, target, noisy = self._denoise(latents, ids, times, noise.to(latents.dtype))
        own = maps.take() if maps is not None else None
        before = self._unchanged(draws, noisy, times)
        out = []
        for g, draw in enumerate(draws):
            mine = slice(g * config.batch, (g + 1) * config.batch)
            masks, present = self.masks[g][draw.view], draw.present.to(self.device)
            union = (masks * present[:, :, None, None]).amax(1)
            mask = resize_mask(union, tuple(target.shape[-2:]), config.mask_resize)
            loss = masked_loss(prediction[mine], target[mine], mask, config.loss)
            if before is not None:
                loss = loss + config.keep * masked_loss(prediction[mine], before[mine], 1 - mask, config.loss)
            if own is not None:
                places = torch.stack([(ids[mine] == i).int().argmax(1) for i in self.ids], dim=1)
                attention = attention_loss(own[mine], places, masks, present, config.mask_resize)
                loss = loss + config.attention_weight * attention
            out.append(loss)
        if self.prior is not None and config.prior_weight:
            out[0] = out[0] + config.prior_weight * self._prior_loss(maps)
        return torch.stack(out)

    def _draw(self, lesson: int) -> _Draw:
        config, batch, generator = self.config, self.config.batch, self.generators[lesson]
        present = sample_union(self.concepts, batch, generator)
        view = (torch.rand(batch, generator=generator) < config.flip).long()
        which = torch.randint(len(config.prompts), (batch,), generator=generator).tolist()
        return _Draw(view.to(self.device), present, which, *self._noise(batch, generator))

    def _noise(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random times (B,), one from each of B equal stretches, and noise (B, C, h, w)."""
        total = self.pipe.scheduler.config.num_train_timesteps
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        noise = torch.randn(batch, *self.latents[0].shape[1:], generator=generator)
        return (u * total).long().clamp(max=total - 1), noise

    def _unchanged(self, draws: list[_Draw], noisy: Tensor, times: Tensor) -> Tensor | None:
        """What the base model predicts for the classes alone, or None when nothing is to be kept."""
        if self.base is None:
            return None
        texts = [self.plain[g, tuple(p), w] for g, draw in enumerate(draws) for p, w in zip(draw.present.tolist(), draw.which)]
        with torch.no_grad():
            return self.base(noisy, times, torch.cat(texts)).sample.float()

    def _plain_texts(self) -> dict:
        """Embeddings of the prompts without new words, by lesson, concepts present and form of the prompt."""
        keys = [(g, present, which) for g in range(len(self.lessons))
                for present in product((False, True), repeat=self.concepts) if any(present)
                for which in range(len(self.config.prompts))]
        prompts = {key: self._prompt(self.lessons[key[0]], *key[1:], named=False) for key in keys}
        # no new word stands in these, so they may go through the encoder in any order and number
        with torch.no_grad():
            known = {text: self.pipe.text_encoder(self._tokens([text] * len(self.lessons)))[0][:1]
                     for text in set(prompts.values())}
        return {key: known[text] for key, text in prompts.items()}

    def _prior_loss(self, maps) -> Tensor:
        latents, batch = self.prior[1].to(self.device), self.config.batch
        index = torch.randint(len(latents), (batch,), generator=self.generators[0]).to(self.device)
        times, noise = self._noise(batch, self.generators[0])
        prediction, target, _ = self._denoise(latents[index], self.prior_ids.expand(len(index), -1), times.to(self.device),
                                              noise.to(latents))
        if maps is not None:
            maps.take()
        return F.mse_loss(prediction, target)

    def _denoise(self, latents: Tensor, ids: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction and target (B, C, h, w) float32 at times (B,), and what was predicted from."""
        scheduler = self.pipe.scheduler
        noisy = scheduler.add_noise(latents, noise, times)
        prediction = self.pipe.unet(noisy, times, self.pipe.text_encoder(ids)[0]).sample.float()
        kind = scheduler.config.prediction_type
        if kind == "epsilon":
            return prediction, noise.float(), noisy
        if kind == "v_prediction":
            return prediction, scheduler.get_velocity(latents, noise, times).float(), noisy
        raise ValueError(f"scheduler prediction_type {kind!r}: expected 'epsilon' or 'v_prediction'")

    def _prompt(self, lesson: Lesson, present: Sequence[bool], which: int, named: bool = True) -> str:
        """A prompt with the concepts present, by their new words or (`named` false) by their classes alone."""
        nouns = [c.noun if named else c.class_name for c, here in zip(lesson.concepts, present) if here]
        return fill(self.config.prompts[which], " and ".join([nouns[0], *map(with_article, nouns[1:])]))

    def _tokens(self, prompts: list[str]) -> Tensor:
        tokenizer = self.pipe.tokenizer
        for prompt in set(prompts) - set(self.cache):
            self.cache[prompt] = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt",
                                           max_length=tokenizer.model_max_length).input_ids[0]
        return torch.stack([self.cache[p] for p in prompts]).to(self.device)


def clip_each(parameters: list[nn.Parameter], most: float, lessons: int) -> None:
    """Clip the gradient norm of every lesson by itself; with several, parameters are (G, ...)."""
    if lessons == 1:
        nn.utils.clip_grad_norm_(parameters, most)
        return
    norms = sum(p.grad.flatten(1).pow(2).sum(1) for p in parameters).sqrt()
    scale = (most / (norms + 1e-6)).clamp(max=1)
    for p in parameters:
        p.grad.mul_(scale.view(-1, *[1] * (p.dim() - 1)))


def sample_union(concepts: int, batch: int, generator: torch.Generator) -> Tensor:
    """Union sampling: for each image of a batch a random non-empty subset of the concepts, (batch, concepts) bool."""
    codes = torch.randint(1, 2**concepts, (batch,), generator=generator)
    return (codes[:, None] >> torch.arange(concepts)) % 2 == 1


def framed(image: np.ndarray, masks: np.ndarray, share: float, longest: float = 0.85) -> tuple[np.ndarray, np.ndarray]:
    """The exemplar with its concepts' common box in the middle and enlarged to `share` of the picture, as one crops to the
    subject: image (H, W, 3) uint8, masks (n, H, W) bool. No side of the box exceeds `longest` of the picture's. Share 0
    leaves it as it is.

    A small generator learns an outline at one place and size, not at many; and a box that is the same for all tells
    nothing of where the exemplar had its own. What comes in at the edges repeats them: the masked loss does not look there.
    """
    if share <= 0:
        return image, masks
    height, width = image.shape[:2]
    ys, xs = np.nonzero(masks.any(0))
    low, high = np.array([xs.min(), ys.min()]), np.array([xs.max(), ys.max()]) + 1
    side, frame = high - low, np.array([width, height])
    scale = min(np.sqrt(share * frame.prod() / side.prod()), (longest * frame / side).min())
    # where the centre of each new pixel was in the old picture, in the units of grid_sample
    columns, rows = [((np.arange(n) + 0.5 - n / 2) / scale + c) / n * 2 - 1 for n, c in zip(frame, (low + high) / 2)]
    grid = torch.from_numpy(np.stack(np.meshgrid(columns, rows), -1)).float()[None]
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    moved = F.grid_sample(pixels, grid, "bicubic", "border", align_corners=False)[0].permute(1, 2, 0)
    covered = F.grid_sample(torch.from_numpy(masks).float()[None], grid, "bilinear", "zeros", align_corners=False)[0]
    return moved.round().clamp(0, 255).byte().numpy(), (covered > 0.5).numpy()


@torch.no_grad()
def encode(pipe, images: np.ndarray) -> Tensor:
    """Latents (n, C, h, w), scaled as the UNet wants them, of images (n, H, W, 3) uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(pipe.unet.device, pipe.vae.dtype)
    return pipe.vae.encode(pixels / 127.5 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor


def check_lesson(lesson: Lesson, config: CustomizeConfig, prior=None) -> None:
    """Raises ValueError when nothing can be learned from it."""
    image, concepts = lesson.image, lesson.concepts
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        raise ValueError(f"customisation wants a square (H, H, 3) uint8 image, got {image.dtype} {image.shape}")
    if not concepts or len({c.token for c in concepts}) < len(concepts):
        raise ValueError(f"customisation wants concepts with different tokens, got {[c.token for c in concepts]}")
    for concept in concepts:
        if concept.mask.shape != image.shape[:2] or not concept.mask.any():
            raise ValueError(f"mask of {concept.noun}: expected a non-empty {image.shape[:2]}, "
                             f"got {concept.mask.shape} with {int(concept.mask.sum())} px")
    if config.prior_weight and prior is None:
        raise ValueError("prior_weight is set but no prior prompt and latents were given")


def item_seed(*names: object) -> int:
    """A seed in [0, 2^63) from any names: the same for the same item, whatever the order or number of other items.

    >>> item_seed("cat-001", 3) == item_seed("cat-001", 3), item_seed("cat-001", 3) == item_seed("cat-001", 4)
    (True, False)
    """
    return int(sha256_bytes("\n".join(map(str, names)).encode())[:16], 16) >> 1
