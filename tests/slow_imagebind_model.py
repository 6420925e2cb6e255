"""ImageBind from torch's own parts, slow and obvious: what the lab's towers are compared with, and how a naive program loads them."""
import torch
from torch import nn
from torch.nn import functional as F

from omega_lab.embedding.trunks import HUGE, Shape, Tower


class Block(nn.Module):
    def __init__(self, tower: Tower, extra: bool):
        super().__init__()
        self.attn = nn.MultiheadAttention(tower.width, tower.heads, add_bias_kv=extra, batch_first=True)
        self.norm_1, self.norm_2 = nn.LayerNorm(tower.width, 1e-6), nn.LayerNorm(tower.width, 1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(tower.width, 4 * tower.width), "fc2": nn.Linear(4 * tower.width, tower.width)})

    def forward(self, x, mask=None):
        normed = self.norm_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


class Holder(nn.Module):
    "Gives a parameter the name the checkpoint has for it."

    def __init__(self, **held):
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)


def parameter(*size):
    return nn.Parameter(torch.zeros(size))


class SlowImageBind(nn.Module):
    def __init__(self, shape: Shape = HUGE):
        super().__init__()
        v, a, t = shape.vision, shape.audio, shape.text
        self.modality_preprocessors = nn.ModuleDict({
            "vision": Holder(cls_token=parameter(1, 1, v.width),
                             rgbt_stem=Holder(proj=nn.Sequential(nn.Identity(), nn.Conv3d(3, v.width, (2, 14, 14), (2, 14, 14), bias=False))),
                             pos_embedding_helper=Holder(pos_embed=parameter(1, 257, v.width))),
            "audio": Holder(cls_token=parameter(1, 1, a.width),
                            rgbt_stem=Holder(proj=nn.Conv2d(1, a.width, 16, 10, bias=False), norm_layer=nn.LayerNorm(a.width)),
                            pos_embedding_helper=Holder(pos_embed=parameter(1, 229, a.width))),
            "text": Holder(pos_embed=parameter(1, 77, t.width), token_embedding=nn.Embedding(shape.ids, t.width))})
        self.modality_trunks = nn.ModuleDict({
            name: Holder(blocks=nn.ModuleList(Block(tower, name == "audio") for _ in range(tower.layers)))
            for name, tower in (("vision", v), ("audio", a), ("text", t))})
        self.modality_trunks["vision"].pre_transformer_layer = nn.Sequential(nn.LayerNorm(v.width, 1e-6))
        self.modality_heads = nn.ModuleDict({
            "vision": nn.Sequential(nn.LayerNorm(v.width, 1e-6), nn.Identity(), nn.Linear(v.width, shape.dim, bias=False)),
            "audio": nn.Sequential(nn.LayerNorm(a.width, 1e-6), nn.Identity(), nn.Linear(a.width, shape.dim, bias=False)),
            "text": Holder(proj=nn.Sequential(nn.LayerNorm(t.width, 1e-6), nn.Linear(t.width, shape.dim, bias=False)))})
        self.modality_postprocessors = nn.ModuleDict({
            name: nn.Sequential(nn.Identity(), Holder(log_logit_scale=parameter())) for name in ("audio", "text")})
        self.eval()

    @torch.inference_mode()
    def vision(self, views):  # float32[n, 3, 2, 224, 224]
        pre, trunk = self.modality_preprocessors["vision"], self.modality_trunks["vision"]
        x = pre.rgbt_stem.proj(views).flatten(2).transpose(1, 2)
        x = torch.cat([pre.cls_token.expand(len(x), -1, -1), x], 1) + pre.pos_embedding_helper.pos_embed
        x = trunk.pre_transformer_layer(x)
        for block in trunk.blocks:
            x = block(x)
        return F.normalize(self.modality_heads["vision"](x[:, 0]), dim=-1)

    def _long(self, x, name):
        return F.normalize(x, dim=-1) * self.modality_postprocessors[name][1].log_logit_scale.exp().clamp(max=100)

    @torch.inference_mode()
    def audio(self, clips):  # float32[n, 1, 128, 204]
        pre = self.modality_preprocessors["audio"]
        x = pre.rgbt_stem.norm_layer(pre.rgbt_stem.proj(clips).flatten(2).transpose(1, 2))
        x = torch.cat([pre.cls_token.expand(len(x), -1, -1), x], 1) + pre.pos_embedding_helper.pos_embed
        for block in self.modality_trunks["audio"].blocks:
            x = block(x)
        return self._long(self.modality_heads["audio"](x[:, 0]), "audio")

    @torch.inference_mode()
    def text(self, ids):  # int64[n, 77]
        pre = self.modality_preprocessors["text"]
        x = pre.token_embedding(ids) + pre.pos_embed
        mask = torch.full((77, 77), float("-inf")).triu(1)
        for block in self.modality_trunks["text"].blocks:
            x = block(x, mask)
        return self._long(self.modality_heads["text"].proj(x[torch.arange(len(x)), ids.argmax(1)]), "text")
