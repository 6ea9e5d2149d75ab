"""Rows that several sources share: the parts of blocks, under the names that each library gives them."""

from __future__ import annotations

from ringmoe_jax.interop.mapping import Row, rows

COSINE_ATTENTION = """
    qkv.weight        query+key+value/kernel   o i -> i o
    q_bias            query/bias
    v_bias            value/bias
    proj              out                      linear
    logit_scale       logit_scale              k 1 1 -> k
    cpb_mlp.0         position_in              linear
    cpb_mlp.2.weight  position_out/kernel      o i -> i o
"""
VIT_BLOCK = """
    norm1            attention_norm                     norm
    attn.qkv.weight  attention/query+key+value/kernel   o i -> i o
    attn.qkv.bias    attention/query+key+value/bias
    attn.proj        attention/out                      linear
    norm2            ffn_norm                           norm
    mlp.fc1          ffn/shared/wi                      linear
    mlp.fc2          ffn/shared/wo                      linear
"""


def swin(
    source: str, path: str, *, attention: str, hidden: tuple[str, str], stage: str, merged: str, norm_every: int = 0
) -> list[Row]:
    """The stages of a SwinV2.

    Args:
        source: prefix of all names.
        path: where the `SwinPyramid` lies.
        attention: what the source calls the attention of a block.
        hidden: the two layers of its feed-forward module.
        stage: and a stage.
        merged: order of a merge's input channels, in einops' notation: neighbours by row (h) and column (w), channels.
        norm_every: blocks between the extra norms; 0 is none.
    """
    stage = source + stage
    block, run = f"{stage}.blocks.{{block}}.", f"{path}/stages/stage{{stage}}/blocks/run0/*[{{block}}]"
    parts = f"""
        norm1        attention_norm   norm
        {hidden[0]}  ffn/shared/wi    linear
        {hidden[1]}  ffn/shared/wo    linear
        norm2        ffn_norm         norm
    """
    merges = f"""
        downsample.reduction.weight  reduce/kernel  o {merged} -> (h w c) o; h=2 w=2
        downsample.norm              norm           norm
    """
    table = rows(COSINE_ATTENTION, f"{block}{attention}.", run.replace("*", "attention/*"))
    table += rows(parts, block, run)
    table += rows(merges, stage.replace("{stage}", "{stage+1}") + ".", f"{path}/merges/merge{{stage}}/*")
    if norm_every:
        last = f"{stage}.blocks.{{{norm_every}*n+{norm_every - 1}}}."
        table += rows("norm3  norms  norm", last, f"{path}/stages/stage{{stage}}/*[{{n}}]")
    return table


def transformer(source: str, path: str, *, names: str) -> list[Row]:
    """The blocks of a `Transformer`.

    Args:
        source: prefix of all names, with "{block}" in it.
        path: where the `Transformer` lies.
        names: a table of one block.
    """
    return rows(names, source, f"{path}/blocks/*[{{block}}]")
