# refused: by which workers would get what is the dashboard's alone: give them different names
{ lib, ... }:
{
  imports = [ ../base.nix ];
  # Secrets are found by file name: two folders do not tell these apart.
  services.fettle.settings.forge.read_token_file = lib.mkForce "read/token";
  services.fettle.settings.forge.write_token_file = lib.mkForce "write/token";
  services.fettle.secrets.token = "/run/secrets/write/token";
}
