# refused: write the path of a file on this host in quotes
{ lib, ... }:
{
  imports = [ ../base.nix ];
  # A path without quotes is copied into the store.
  services.fettle.secrets."worker.key" = lib.mkForce ./secret-as-a-path-of-nix.nix;
}
