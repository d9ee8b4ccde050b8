# refused: are both on: Fettle runs on this host either as services or in a cluster
{
  imports = [ ../../../nixos/examples/single-node.nix ];
  services.fettle.k3s = {
    enable = true;
    certManager = false;
    keda = false;
    charts.fettle = "/srv/bundle/charts/fettle.tgz";
  };
}
