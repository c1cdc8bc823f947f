"""iptlive as a Salt extension: Salt's loader finds modules, states, runners and so on in this package's folders."""
