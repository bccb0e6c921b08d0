"""Measuring candidates: isolated worker processes, duels, throughput, quality, energy and the host.

Takes sessions by an opener string ``"module:function"``; gives records. Knows no runtime.
"""
