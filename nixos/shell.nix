# What `cargo xtask test` and the work on Fettle need.
{ pkgs }:
pkgs.mkShell {
  packages = [
    pkgs.cargo
    pkgs.cargo-deny
    pkgs.clippy
    pkgs.git
    pkgs.gnumake
    pkgs.nix
    pkgs.nixfmt-tree
    pkgs.nodejs
    (pkgs.python3.withPackages (python: [ python.pytest ]))
    pkgs.rust-analyzer
    pkgs.rustc
    pkgs.rustfmt
    pkgs.sqlx-cli
  ];
  env.RUST_SRC_PATH = "${pkgs.rustPlatform.rustLibSrc}";
}
