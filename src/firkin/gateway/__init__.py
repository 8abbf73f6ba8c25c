"""The egress gateway: what sandboxes send out, judged by name, with headers and secrets put in.

A process of its own for each tenant, without rights or files, in a network of its
own. It is told by the server alone what holds for which sandbox; what a
sandbox sends is hostile, and is limited in size, number and time everywhere.
"""
