# Options stand in pillar under 'iptlive' (see pillar.example); the state takes them from there by itself.
# Only 'sources' is named here, because salt-ssh brings along the files that it finds in a state, not those of pillar.
# Jinja does not know YAML's comments, and YAML no Jinja: {% set sources = salt['pillar.get']('iptlive:sources', {}) %}
iptlive:
  iptlive.managed:
    - sources: {{ sources | json }}
