# refused: mount another disk at /var/lib/fettle
{
  imports = [ ../base.nix ];
  services.fettle.settings.store.data_dir = "/data/fettle";
}
