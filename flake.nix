{
  description = "Fettle: issues go in, pull requests that carry their own proof come out";

  # The one input: each further one would be a hash that somebody has to trust.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEach = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      programs = pkgs: import ./nixos/package.nix { inherit pkgs; };
    in
    {
      packages = forEach (
        pkgs:
        let
          built = programs pkgs;
          image = import ./nixos/image.nix { inherit pkgs; };
        in
        {
          default = built.fettle;
          inherit (built)
            fettle
            fettle-dashboard
            fettle-inference
            fettle-installer
            fettle-worker
            ;
          image-dashboard = image.dashboard { package = built.fettle-dashboard; };
          image-worker = image.worker { package = built.fettle-worker; };
        }
      );

      apps = forEach (
        pkgs:
        let
          built = programs pkgs;
          app = package: program: {
            type = "app";
            program = "${package}/bin/${program}";
            meta.description = package.meta.description;
          };
        in
        {
          default = app built.fettle "fettle";
          # Not the static one: this one lies inside the release tree that it installs.
          installer = app built.fettle "fettle-installer";
          demo = app built.fettle-demo "fettle-demo";
        }
      );

      overlays.default = final: _: programs final;

      nixosModules.default =
        { lib, pkgs, ... }:
        let
          here = system: self.packages.${system}.fettle;
        in
        {
          imports = [ ./nixos/module ];
          services.fettle.package = lib.mkDefault (here pkgs.stdenv.hostPlatform.system);
          services.fettle.checkedBy = lib.mkDefault (here pkgs.stdenv.buildPlatform.system);
        };

      nixosModules.k3s = import ./nixos/module/k3s.nix;

      checks = forEach (
        pkgs:
        import ./nixos/checks.nix {
          inherit pkgs;
          module = self.nixosModules.default;
          cluster = self.nixosModules.k3s;
          nixosSystem = lib.nixosSystem;
          built = programs pkgs;
        }
      );

      devShells = forEach (pkgs: {
        default = import ./nixos/shell.nix { inherit pkgs; };
      });

      formatter = forEach (pkgs: pkgs.nixfmt-tree);
    };
}
