"""iptlive beside the bare iptables programs, measured in one run: ``./dev bench``."""
