# Options stand in pillar under 'iptlive' (see pillar.example); the state takes them from there by itself.
iptlive:
  iptlive.managed: []
