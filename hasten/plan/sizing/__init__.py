"""Right-sizing: what to deploy, where, at what cost. Pure functions, no torch.

The data flows through the files in this order: a request (``spec``) and the catalogues (``hardware``, ``shapes``) give
options (``options``); ``memory``, ``roofline``, ``queueing``, ``laws`` and ``economics`` say what each takes; ``judge``
holds it against the bounds; ``recommend`` ranks what is left and says why. Every number is a :class:`Figure` with its
kind: measured, predicted, published or assumed.
"""
