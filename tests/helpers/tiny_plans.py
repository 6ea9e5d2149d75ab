"""A configuration small enough to compile in seconds."""

from configs import common


def values(batch: int = 8, width: int = 8, **mesh: int) -> dict:
    """Two sensors of 16 px, eight specialised and four collaborative experts, one stage of two blocks."""
    config = common.ringmoe(width=width, depths=(2,), head_width=4)
    config.model.update(sensors=("rgb", "slc_dual"), image_size=16, window=2, remat="none")
    config.objectives = dict(
        rgb=dict(name="masked_l1", sensor="rgb"),
        slc_dual=dict(name="total_power", sensor="slc_dual"),
        balance=dict(name="balance"),
    )
    config.data.streams = dict(
        rgb=dict(directory="nowhere", sensors=("rgb",), crop_scale=(0.2, 0.5)),
        slc=dict(directory="nowhere", sensors=("slc_dual",), crop_scale=(1.0, 1.0)),
    )
    config.data.update(image_size=16, batch_size=batch, mask_unit=4)
    config.mesh.update(mesh)
    return config.to_dict()


def exchanges(plan) -> tuple[int, float]:
    """(executions, payload bytes) of the all-to-all between devices that share the experts."""
    size = plan.mesh["expert"]
    found = [c for c in plan.compiled.cost.collectives if c.kind == "all-to-all" and len(c.members) == size]
    return sum(c.runs for c in found), sum(c.runs * c.sent / ((size - 1) / size) for c in found)
