"""Everything that a running training shows: metrics, progress, status and the report."""

from effnetv2_jax.runtime.extras import need

need("train", __name__)
