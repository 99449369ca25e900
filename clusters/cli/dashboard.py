"""The command ``onibi dashboard``: Grafana's view of runs, in a server or as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from onibi.clusters.cli.frame import Debug, told


def dashboard(
    grafana: Annotated[
        str | None,
        typer.Option(
            "--grafana", metavar="URL", help="A Grafana that runs: http://HOST:3000, with its path if it has one."
        ),
    ] = None,
    prometheus: Annotated[
        str, typer.Option("--prometheus", metavar="URL", help="Prometheus, as Grafana's server reaches it.")
    ] = "http://127.0.0.1:9090",
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FOLDER", file_okay=False, help="Write all of it as files, for hand import."),
    ] = None,
    debug: Debug = False,
) -> None:
    r"""Put Onibi's dashboards into Grafana, with the Prometheus that they read. Twice changes nothing.

    GRAFANA_TOKEN holds a token of a service account with the role Admin; or set GRAFANA_USER and GRAFANA_PASSWORD.

    Examples:
      onibi dashboard --grafana http://127.0.0.1:3000
      onibi dashboard --grafana https://host/grafana \
          --prometheus http://prometheus:9090
      onibi dashboard --export monitoring
    """
    with told(debug=debug):
        from onibi.platform.errors import ConfigError

        if grafana is None and export is None:
            raise ConfigError(
                "nothing to do: --grafana http://HOST:3000 puts dashboards into a Grafana that runs, --export FOLDER "
                "writes them as files"
            )
        from onibi.infra.grafana.provisioning import is_address

        if not is_address(prometheus):
            raise ConfigError("--prometheus is an address as http://HOST:9090, without user and password")
        if export is not None:
            from onibi.infra.grafana.export import export as written_to

            try:
                for path in written_to(export, prometheus):
                    print(path)
            except OSError as error:
                why = error.strerror or error
                raise ConfigError(f"{export} cannot be written: {why}. Choose another folder") from error
        if grafana is not None:
            _provision(grafana, prometheus)


def _provision(url: str, prometheus: str) -> None:
    from onibi.infra.grafana.provisioning import Credentials, Grafana

    server = Grafana(url, Credentials.from_environment(os.environ))
    for each in server.provision(prometheus):
        print(f"{each.outcome:9}  {each.what:28}  {each.url}")
    if fault := server.datasource_fault():
        print(
            f"\nGrafana gets no answer from Prometheus at {prometheus}: {fault}\n"
            "The dashboards stay empty until it does. --prometheus is the address as Grafana's server reaches it."
        )
