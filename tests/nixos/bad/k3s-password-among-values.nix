# refused: services.fettle.k3s.values.redis.password is a secret by its name
{
  services.fettle.k3s = {
    enable = true;
    certManager = false;
    keda = false;
    charts.fettle = "/srv/bundle/charts/fettle.tgz";
    values.redis.password = "in the open";
  };
}
