//! Podman's networks: the bridge, ports of the host, names.

use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::Engine;
use tatami_tests::page;

use crate::stage::Cli;

pub(crate) const CASES: &[Case<Cli>] = &[Case::new("podman: a network, names, a port of the host", network).long()];

fn network(cli: &mut Cli, notes: &mut Notes) {
    let network = cli.id("net");
    notes.want("a network", cli.call(&["network", "create", "--subnet", "172.28.9.0/24", &network]).status, 0);
    let serve = "mkdir /www; echo page >/www/x; exec httpd -f -p 80 -h /www";
    let options = ["--network", &network, "--publish", "127.0.0.1:18082:80", "--network-alias", "pages"];
    cli.detached("web", &options, &["sh", "-c", serve]);
    cli.detached("c", &["--network", &network], &["sleep", "1000"]);
    let address = cli.exec("web", &[], &["sh", "-c", "ip -o addr show dev eth0 scope global | awk '{print $4}'"]).out();
    let told = cli.inspect("web", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
    notes.want("its address is the one that Podman tells", address.trim() == format!("{told}/24"), true);
    let way_out = cli.exec("web", &[], &["sh", "-c", "ip route | grep ^default | cut -d ' ' -f -5"]).out();
    notes.want("its way out", way_out.trim(), "default via 172.28.9.1 dev eth0");
    notes.want("the page by the host's port", page("127.0.0.1:18082"), "page");
    let fetch = |name: &str| {
        let script = format!(
            "i=0; until timeout 10 wget -qO- http://{name}/x || test $i -gt 20; do i=$((i+1)); sleep 0.5; done"
        );
        cli.exec("c", &[], &["sh", "-c", &script]).out().trim().to_owned()
    };
    notes.want("by its name", fetch(&cli.id("web")), "page");
    notes.want("by its other name", fetch("pages"), "page");
    notes.want("removed", cli.call(&["rm", "--force", "--time", "0", &cli.id("web"), &cli.id("c")]).status, 0);
    notes.want("the network too", cli.call(&["network", "rm", &network]).status, 0);
}
