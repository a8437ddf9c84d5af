"""The one mesh-partitioning layer: axes, rules, mesh, partition. Nothing else spells a mesh axis."""
