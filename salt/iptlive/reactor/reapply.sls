# Brings a minion whose live rules have drifted back in line. On the master:
#
#   reactor:
#     - salt/beacon/*/iptlive/changes:
#         - salt://iptlive/reactor/reapply.sls
#
# A list, so that an id with a wildcard in it, which only a broken or hostile minion would send, matches nobody.
# Jinja does not know YAML's comments, and YAML no Jinja: {% set minion = data['id'] | yaml_dquote %}
iptlive_reapply:
  local.state.apply:
    - tgt: {{ minion }}
    - tgt_type: list
    - args:
        - mods: iptlive
