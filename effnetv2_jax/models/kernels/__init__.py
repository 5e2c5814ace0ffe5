"""The implementation of a network's operations on each platform.

The layers of ``effnetv2_jax.models.layers`` call three functions: ``convolutions.conv`` and its
relatives, ``activations.normalize`` and ``activations.gated``. Each of them has one result on every
platform. How it is computed, what training keeps for the backward pass and what it computes again
is decided here, when a program is lowered for a platform. ``on_cpu`` and ``winograd`` hold what is
faster on CPU than XLA's own convolutions, and ``linear`` makes hand-written gradients part of
derivatives of every kind. Nothing in this folder knows about modules, parameters or the shape of a
network.
"""
