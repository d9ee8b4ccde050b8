# Stand-ins for secrets, written while the machine starts: a test keeps them out of the store as well.
names: {
  systemd.services.test-secrets = {
    description = "Secrets for the test";
    wantedBy = [ "sysinit.target" ];
    before = [
      "sysinit.target"
      "fettle-dashboard.service"
      "fettle-worker@01.service"
      "fettle-worker@02.service"
    ];
    unitConfig.DefaultDependencies = false;
    serviceConfig.Type = "oneshot";
    script = ''
      mkdir -p -m 0700 /run/test-secrets
      umask 077
      for name in ${toString names}; do
        printf 'not-a-real-secret-%064d' 7 > "/run/test-secrets/$name"
      done
      # The two tokens of a forge are never one.
      if [ -e /run/test-secrets/read-token ]; then printf read >> /run/test-secrets/read-token; fi
    '';
  };
}
