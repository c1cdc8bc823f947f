# Has the stored files loaded at boot, by what the distribution has for it. Nothing is loaded, restarted or flushed now:
# the packages' own scripts would do so, when they are installed and at each upgrade, and on Debian they would also
# overwrite the stored files with the live rules, Docker's included.
# Jinja does not know comments of YAML, nor YAML Jinja.
# {% from "iptlive/map.jinja" import loader with context %}
# {% set policy = '/usr/sbin/policy-rc.d' %}
# {% set missing = loader.get('packages', []) | reject('in', salt['pkg.list_pkgs']()) | list %}

# {% if not loader %}
iptlive_boot_unknown_distribution:
  test.fail_without_changes:
    - name: >-
        iptlive.boot knows nothing that loads rules on {{ grains['os_family'] }}: load the stored files by a unit of
        your own (docs/boot.md)
# {% endif %}

# Only booting starts them; 'systemctl restart' and the scripts of an upgrade are refused.
# {% for service in loader.get('services', []) %}
iptlive_boot_only_{{ service }}:
  file.managed:
    - name: /etc/systemd/system/{{ service }}.service.d/iptlive.conf
    - makedirs: true
    - mode: '0644'
    - contents: |
        [Unit]
        RefuseManualStart=yes
        RefuseManualStop=yes
# {% endfor %}

# {% if missing %}
# {% if loader.answers %}
iptlive_boot_answers:
  cmd.run:
    - name: debconf-set-selections
    - stdin: |
        {{ loader.answers | join('\n') | indent(8) }}

# For hosts without a running systemd. One that is there already stays.
iptlive_boot_nothing_is_started:
  file.managed:
    - name: {{ policy }}
    - replace: false
    - mode: '0755'
    - contents: |
        #!/bin/sh
        # iptlive.boot, while it installs packages: the rules are not to be loaded now
        exit 101
# {% endif %}

iptlive_boot_packages:
  pkg.installed:
    - pkgs: {{ missing | json }}
    # {% if loader.answers %}
    - require:
        - cmd: iptlive_boot_answers
        - file: iptlive_boot_nothing_is_started

# Whatever became of the packages.
iptlive_boot_others_may_start_again:
  file.absent:
    - name: {{ policy }}
    - onlyif: grep -q iptlive.boot {{ policy }}
# {% endif %}
# {% endif %}

# The scripts of Debian's packages enable them, too; a chroot has nothing that could be asked.
# {% for service in loader.get('services', []) if 'service.enabled' in salt %}
iptlive_boot_enables_{{ service }}:
  service.enabled:
    - name: {{ service }}
# {% endfor %}
