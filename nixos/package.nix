# The programs, built by cargo from the committed lock file alone: its checksums are the only hashes.
{ pkgs }:
let
  inherit (pkgs) lib;

  version = (lib.importTOML ../Cargo.toml).workspace.package.version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../crates
      ../installer
      ../systemd
      ../tests
    ];
  };

  # Packages are named, never the whole workspace: `fettle-tests` turns on what tests kill programs with.
  #
  # There is no native input beside the C compiler. SQLite, libgit2 and zlib come as sources within their crates, and
  # AWS-LC is told not to fall back to CMake, so that a build for which its own list of files does not do fails here.
  cargoBuild =
    pkgs:
    {
      pname,
      packages,
      description,
      ...
    }@arguments:
    pkgs.rustPlatform.buildRustPackage (
      {
        inherit pname version src;
        cargoLock.lockFile = ../Cargo.lock;
        cargoBuildFlags = lib.concatMap (package: [
          "--package"
          package
        ]) packages;
        env = {
          AWS_LC_SYS_CMAKE_BUILDER = "0";
          SQLX_OFFLINE = "true";
        };
        # Tests are checks of the flake.
        doCheck = false;
        meta = {
          inherit description;
          license = lib.licenses.asl20;
          mainProgram = pname;
          platforms = [
            "x86_64-linux"
            "aarch64-linux"
          ];
        };
      }
      // removeAttrs arguments [
        "description"
        "packages"
      ]
    );

  # One of the release tree's programs, so that an image or another host holds no more than it needs. Copied and not built
  # again: nothing in the programs refers to the rest of the tree.
  slice =
    {
      pname,
      programs,
      description,
    }:
    pkgs.runCommand "${pname}-${version}"
      {
        inherit pname version;
        meta = fettle.meta // {
          inherit description;
          mainProgram = pname;
        };
      }
      ''
        install -D -m 0755 -t "$out/bin" ${
          lib.concatMapStringsSep " " (program: "${fettle}/bin/${program}") programs
        }
      '';

  # The release tree: everything that is installed on a host, and a list of it.
  fettle = cargoBuild pkgs {
    pname = "fettle";
    description = "Issues go in, pull requests that carry their own proof come out";
    packages = [
      "fettle-cli"
      "fettle-dashboard"
      "fettle-engines"
      "fettle-inference"
      "fettle-installer"
      "fettle-sandbox"
      "fettle-worker"
    ];
    postInstall = ''
      for part in units sysusers tmpfiles apparmor polkit; do
        install -D -m 0644 -t "$out/share/fettle/$part" systemd/"$part"/*
      done
    '';
    # After the fixup, which strips the programs. The store makes all files read-only; the modes are those that an
    # installation gives them. Names in the tree need no quoting in JSON.
    postFixup = ''
      (
        cd "$out"
        printf '{"arch":"%s","files":{' ${pkgs.stdenv.hostPlatform.parsed.cpu.name}
        separator=
        find bin share -type f | LC_ALL=C sort | while read -r file; do
          mode=0644
          if [ -x "$file" ]; then mode=0755; fi
          printf '%s"%s":{"mode":"%s","sha256":"%s"}' "$separator" "$file" "$mode" \
            "$(sha256sum "$file" | cut -d ' ' -f 1)"
          separator=,
        done
        printf '},"oldest_reader":12,"schema":1,"version":"${version}"}\n'
      ) > "$out/manifest.json"
    '';
  };
in
{
  inherit fettle;

  fettle-dashboard = slice {
    pname = "fettle-dashboard";
    description = "Fettle's dashboard: ledger, forge, API";
    programs = [ "fettle-dashboard" ];
  };

  # The worker starts its helper from the folder that it lies in.
  fettle-worker = slice {
    pname = "fettle-worker";
    description = "Fettle's worker, and the helper that builds its sandbox";
    programs = [
      "fettle-worker"
      "fettle-sandbox"
    ];
  };

  # The inference process starts its keeper of engines from the folder that it lies in.
  fettle-inference = slice {
    pname = "fettle-inference";
    description = "Fettle's models: placement on GPUs, engines, and the gateway to them";
    programs = [
      "fettle-inference"
      "fettle-engine-keeper"
    ];
  };

  # Static, to be carried to a host without Nix: the C sources within its crates know musl, and nothing is loaded at run time.
  # musl finds users in /etc/passwd alone; that is where ours are.
  fettle-installer = cargoBuild pkgs.pkgsStatic {
    pname = "fettle-installer";
    description = "Installs, upgrades, backs up and removes Fettle on a host";
    packages = [ "fettle-installer" ];
  };

  # Beside the programs that it starts; they can be killed at named points here, as in every build together with the tests.
  fettle-demo = cargoBuild pkgs {
    pname = "fettle-demo";
    description = "Shows how an issue becomes a proven pull request, without network, service or account";
    packages = [
      "fettle-cli"
      "fettle-dashboard"
      "fettle-sandbox"
      "fettle-tests"
      "fettle-worker"
    ];
  };
}
