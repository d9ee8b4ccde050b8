# refused: use letters, digits, dots and hyphens
{
  imports = [ ../base.nix ];
  services.fettle.secrets."worker:key" = "/run/secrets/worker.key";
}
