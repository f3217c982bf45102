"""Entitlement: limits in layers, counted exactly. Start with `quota.ledger`."""
