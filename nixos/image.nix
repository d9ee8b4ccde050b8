# Images for a cluster: one program, certificates, time zones, and user 65532 who owns nothing.
{ pkgs }:
let
  inherit (pkgs) lib;

  user = "65532";

  accounts = pkgs.runCommand "fettle-accounts" { } ''
    mkdir -p "$out/etc"
    echo 'root:x:0:0::/:/sbin/nologin' > "$out/etc/passwd"
    echo 'fettle:x:${user}:${user}::/var/lib/fettle:/sbin/nologin' >> "$out/etc/passwd"
    printf 'root:x:0:\nfettle:x:${user}:\n' > "$out/etc/group"
    echo 'hosts: files dns' > "$out/etc/nsswitch.conf"
  '';

  image =
    {
      package,
      contents,
      path,
    }:
    pkgs.dockerTools.streamLayeredImage {
      name = package.pname;
      tag = package.version;
      contents = [
        accounts
        pkgs.cacert
        pkgs.tzdata
        package
      ]
      ++ contents;
      # The state's folder is a volume's place; without one it is the user's own.
      fakeRootCommands = ''
        install -d -m 0700 -o ${user} -g ${user} ./var/lib/fettle
        install -d -m 1777 ./tmp
      '';
      config = {
        User = "${user}:${user}";
        WorkingDir = "/var/lib/fettle";
        Entrypoint = [ "${package}/bin/${package.pname}" ];
        Cmd = [
          "--config"
          "/etc/fettle/fettle.toml"
        ];
        Env = [
          "PATH=${path}"
          "SSL_CERT_FILE=${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt"
          "STATE_DIRECTORY=/var/lib/fettle"
          "TZDIR=${pkgs.tzdata}/share/zoneinfo"
        ];
        Labels."org.opencontainers.image.licenses" = "Apache-2.0";
      };
    };
in
{
  dashboard =
    { package }:
    image {
      inherit package;
      contents = [ ];
      path = "${package}/bin";
    };

  # The tools are what repositories are built and tested with; an image with others is made by naming them here.
  worker =
    {
      package,
      tools ? [
        pkgs.bash
        pkgs.cargo
        pkgs.clippy
        pkgs.coreutils
        pkgs.diffutils
        pkgs.findutils
        pkgs.gawk
        pkgs.gcc
        pkgs.git
        pkgs.gnugrep
        pkgs.gnumake
        pkgs.gnused
        pkgs.gnutar
        pkgs.gzip
        pkgs.nodejs
        (pkgs.python3.withPackages (python: [ python.pytest ]))
        pkgs.rustc
        pkgs.rustfmt
      ],
    }:
    image {
      inherit package;
      # At /bin, where sandboxed commands look for them.
      contents = tools;
      path = "${package}/bin:/bin";
    };
}
