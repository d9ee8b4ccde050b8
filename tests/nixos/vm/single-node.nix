# One machine: units start, health answers on loopback alone, a Task goes through, secrets reach whom they may, a process that is
# killed comes back while its socket stays open, other settings take effect without a refused connection.
{ module }:
{
  name = "fettle-single-node";

  nodes.outside = { };

  nodes.machine =
    { lib, ... }:
    {
      imports = [
        module
        (import ./secrets.nix [
          "read-token"
          "webhook-secret"
          "worker.key"
          "write-token"
        ])
      ];
      services.fettle = {
        enable = true;
        dashboard.openFirewall = true;
        worker.instances = 2;
        settings = {
          server.listen = "0.0.0.0:8080";
          auth.worker_key_file = "worker.key";
          forge.read_token_file = "read-token";
          forge.webhook_secret_file = "webhook-secret";
          forge.write_token_file = "write-token";
        };
        secrets = lib.genAttrs [
          "read-token"
          "webhook-secret"
          "worker.key"
          "write-token"
        ] (name: "/run/test-secrets/${name}");
      };
      specialisation.other-label.configuration.services.fettle.settings.forge.label = "please-fix";
    };

  testScript = ''
    start_all()
    machine.wait_for_unit("fettle.target")
    for unit in ["fettle-dashboard", "fettle-worker@01", "fettle-worker@02"]:
        machine.wait_for_unit(f"{unit}.service")
    for port in [8081, 9201, 9202]:
        machine.wait_until_succeeds(f"curl --fail --silent http://127.0.0.1:{port}/healthz")

    with subtest("health and worker API are heard on this machine alone"):
        outside.wait_for_unit("multi-user.target")
        outside.wait_until_succeeds("curl --silent --max-time 5 http://machine:8080/")
        for port in [8081, 9201]:
            outside.fail(f"curl --silent --max-time 5 http://machine:{port}/healthz")

    dashboard = "fettle --url http://127.0.0.1:8080 --key-file /var/lib/fettle/dashboard/admin.key"
    with subtest("a Task goes through"):
        machine.succeed(f"{dashboard} submit --mode probe --wait")

    with subtest("a worker has no key that writes"):
        given = machine.succeed("ls /run/credentials/fettle-worker@01.service").split()
        assert given == ["read-token", "worker.key"], given
        given = machine.succeed("ls /run/credentials/fettle-dashboard.service").split()
        assert given == ["read-token", "webhook-secret", "worker.key", "write-token"], given
        machine.fail("grep --recursive not-a-real-secret /etc/fettle /nix/store/*fettle*")

    with subtest("a process that is killed comes back, and its socket was open"):
        machine.succeed("systemctl kill --signal=KILL fettle-dashboard.service")
        machine.succeed("curl --fail --silent --max-time 60 http://127.0.0.1:8081/healthz")
        machine.succeed(f"{dashboard} submit --mode probe --wait")

    with subtest("other settings start the processes anew and refuse nobody"):
        before = machine.succeed("systemctl show --property=MainPID fettle-dashboard.service")
        machine.succeed(
            "(while curl --fail --silent --output /dev/null --max-time 60 http://127.0.0.1:8081/healthz; do :; done; touch /tmp/refused) >&2 &"
        )
        machine.succeed("/run/booted-system/specialisation/other-label/bin/switch-to-configuration test")
        machine.wait_for_unit("fettle-dashboard.service")
        machine.succeed("curl --fail --silent http://127.0.0.1:8081/healthz")
        assert before != machine.succeed("systemctl show --property=MainPID fettle-dashboard.service")
        machine.fail("test -e /tmp/refused")
        machine.succeed("grep please-fix /etc/fettle/fettle.toml")

    with subtest("stopping the target stops everything"):
        machine.succeed("systemctl stop fettle.target")
        machine.fail("systemctl is-active fettle-dashboard.service fettle-worker@01.service")
  '';
}
