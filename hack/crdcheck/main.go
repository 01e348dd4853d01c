// crdcheck validates CustomResourceDefinitions and objects with the code of the API server, without running one. For
// each definition it checks the structural schema and the types and cost of CEL; for each object on standard input it
// applies the defaults and checks the schema and the CEL rules.
//
//	crdcheck CRD.yaml... < input.json > output.json
//
// Input: [{"object": {...}, "old": {...}}, ...]. Output: {"definitions": {file: [error]}, "objects": [[error]]}.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

type input struct {
	Object map[string]any `json:"object"`
	Old    map[string]any `json:"old"`
}

type output struct {
	Definitions map[string][]string `json:"definitions"`
	Objects     [][]string          `json:"objects"`
}

// kind is the schema of a kind, in the two forms that the API server keeps.
type kind struct {
	structural *structuralschema.Structural
	props      *apiextensions.JSONSchemaProps
}

func messages(errs field.ErrorList) []string {
	texts := []string{}
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	return texts
}

// load reads one definition as the API server would when it is created.
func load(
	ctx context.Context, scheme *runtime.Scheme, file string,
) (name string, schema kind, errs field.ErrorList, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", kind{}, nil, err
	}
	var external apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &external); err != nil {
		return "", kind{}, nil, fmt.Errorf("%s: %w", file, err)
	}
	scheme.Default(&external)
	var crd apiextensions.CustomResourceDefinition
	if err := scheme.Convert(&external, &crd, nil); err != nil {
		return "", kind{}, nil, fmt.Errorf("%s: %w", file, err)
	}
	crd.Status.StoredVersions = []string{crd.Spec.Versions[0].Name}
	errs = validation.ValidateCustomResourceDefinition(ctx, &crd)
	props := crd.Spec.Versions[0].Schema
	if props == nil {
		props = crd.Spec.Validation
	}
	structural, err := structuralschema.NewStructural(props.OpenAPIV3Schema)
	return crd.Spec.Names.Kind, kind{structural, props.OpenAPIV3Schema}, errs, err
}

func (k kind) validate(ctx context.Context, in input) (field.ErrorList, error) {
	validator, _, err := schemavalidation.NewSchemaValidator(k.props)
	if err != nil {
		return nil, err
	}
	defaulting.Default(in.Object, k.structural)
	options := structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	unknown := pruning.PruneWithOptions(in.Object, k.structural, true, options)
	errs := schemavalidation.ValidateCustomResource(nil, in.Object, validator)
	for _, path := range unknown {
		errs = append(errs, field.Forbidden(field.NewPath(path), "unknown field"))
	}
	if in.Old != nil {
		defaulting.Default(in.Old, k.structural)
	}
	var old any
	if in.Old != nil {
		old = in.Old
	}
	rules := cel.NewValidator(k.structural, true, celconfig.PerCallLimit)
	ruleErrs, _ := rules.Validate(ctx, nil, k.structural, in.Object, old, celconfig.RuntimeCELCostBudget)
	return append(errs, ruleErrs...), nil
}

func run() error {
	ctx := context.Background()
	scheme := runtime.NewScheme()
	install.Install(scheme)
	kinds := map[string]kind{}
	out := output{Definitions: map[string][]string{}, Objects: [][]string{}}
	for _, file := range os.Args[1:] {
		name, schema, errs, err := load(ctx, scheme, file)
		if err != nil {
			return err
		}
		kinds[name] = schema
		out.Definitions[file] = messages(errs)
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	// As the API server reads objects: a whole number is an integer, as CEL needs it, and no float64.
	var inputs []input
	if err := utiljson.Unmarshal(text, &inputs); err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	for i, in := range inputs {
		name, _ := in.Object["kind"].(string)
		schema, found := kinds[name]
		if !found {
			return fmt.Errorf("object %d: no definition of kind %q", i, name)
		}
		errs, err := schema.validate(ctx, in)
		if err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
		out.Objects = append(out.Objects, messages(errs))
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "crdcheck:", err)
		os.Exit(1)
	}
}
