# An example to copy: look at all hosts, then apply in batches with a time limit, and stop at the first failure.
#
#     salt-run state.orchestrate iptlive.orch.rollout pillar='{rollout: {target: "web*", batch: 10%}}'
#
# The report fails when a host refuses, has an error or does not answer; hosts that only have changes to make are what
# the rollout is for. Each host rolls its update back unless it can reach the master again within 60 seconds.

iptlive is fit to be applied everywhere:
  salt.runner:
    - name: iptlive.report
    - tgt: "{{ salt['pillar.get']('rollout:target', '*') }}"
    - changes_ok: true

iptlive is applied, batch by batch:
  salt.state:
    - tgt: "{{ salt['pillar.get']('rollout:target', '*') }}"
    - sls: [iptlive]
    - pillar:
        iptlive:
          confirm: 60
    - batch: "{{ salt['pillar.get']('rollout:batch', '25%') }}"
    - failhard: true
    - require:
        - salt: iptlive is fit to be applied everywhere
