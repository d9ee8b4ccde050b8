# refused: would lie in the Nix store
{ lib, ... }:
{
  imports = [ ../base.nix ];
  services.fettle.secrets."worker.key" = lib.mkForce "/nix/store/00000000000000000000000000000000-worker.key";
}
