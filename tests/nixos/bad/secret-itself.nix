# refused: and never the secret itself
{ lib, ... }:
{
  imports = [ ../base.nix ];
  services.fettle.secrets."worker.key" = lib.mkForce "c2VjcmV0";
}
