"""Reads rendered manifests and says what schemas think of them. Knows nothing of Fettle.

validate.py SCHEMAS VERSIONS FILE...: SCHEMAS is a folder of JSON schemas for kinds that Kubernetes does not have itself, VERSIONS
are those of Kubernetes with commas between. Prints one JSON object a line for each object of each file: `file`, `object`, and
`problems`, sentences.
"""

import functools
import json
import pathlib
import sys

import jsonschema
import kubernetes_validate.utils as kubernetes
import referencing
import yaml

Validator = jsonschema.validators.Draft202012Validator


@functools.cache
def definitions(version):
    name = f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json"
    return referencing.Resource.from_contents(kubernetes.schema_contents(name, version))


@functools.cache
def builtin(version, api_version, kind):
    """Of a kind of Kubernetes itself; None when it has none of that name."""
    group, _, number = api_version.rpartition("/")
    api = f"{group.split('.')[0]}-{number}" if group else number
    name = f"kubernetes-json-schema/v{version}.0-local-strict/{kind.lower()}-{api}.json"
    try:
        schema = kubernetes.schema_contents(name, version)
    except FileNotFoundError:
        return None
    registry = definitions(version) @ (referencing.Resource.from_contents(schema) @ referencing.Registry())
    return Validator(schema, registry=registry)


def written_down(folder):
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        schema = json.loads(path.read_text())
        Validator.check_schema(schema)
        properties = schema["properties"]
        found[properties["apiVersion"]["const"], properties["kind"]["const"]] = Validator(schema)
    return found


def told(errors, against):
    for error in errors:
        # Of alternatives, the one that came nearest says what is wrong.
        nearest = jsonschema.exceptions.best_match([error]) or error
        path = ".".join(str(part) for part in nearest.absolute_path)
        yield f"{path or 'the object'}: {nearest.message[:300]} ({against})"


def problems(thing, schemas, versions):
    key = thing.get("apiVersion", ""), thing.get("kind", "")
    if key in schemas:
        found = list(told(schemas[key].iter_errors(thing), "charts/schemas"))
        job = thing.get("spec", {}).get("jobTargetRef")
        if job is not None:
            within = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "within"}, "spec": job}
            found += [f"spec.jobTargetRef as a Job: {problem}" for problem in problems(within, schemas, versions)]
        return found
    found = []
    for version in versions:
        validator = builtin(version, *key)
        if validator is None:
            found.append(f"nobody knows a {key[1]} of {key[0]} (Kubernetes {version})")
        else:
            found += told(validator.iter_errors(thing), f"Kubernetes {version}")
    return found


class UniqueKeys(yaml.SafeLoader):
    """A key that stands twice in a mapping is a mistake that YAML's readers pass over."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def main(folder, versions, *files):
    schemas = written_down(folder)
    seen = {}
    for file in files:
        for thing in yaml.load_all(pathlib.Path(file).read_text(), Loader=UniqueKeys):
            if thing is None:
                continue
            text = json.dumps(thing, sort_keys=True, default=str)
            if text not in seen:
                seen[text] = problems(thing, schemas, versions.split(","))
            print(json.dumps({"file": file, "object": thing, "problems": seen[text]}, default=str))


main(*sys.argv[1:])
