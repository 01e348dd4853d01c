// rulecheck reads rules of Prometheus, and expressions of a dashboard, with Prometheus' own parser, and lists the
// metrics that they read.
//
//	rulecheck RULES.yaml < expressions.json > output.json
//
// Input: a list of expressions. Output: {"errors": [error], "metrics": [name]}.
//
// It also evaluates the alerts over made-up series, by Prometheus' own engine:
//
//	rulecheck RULES.yaml evaluate < evaluations.json > output.json
//
// Input: a list of evaluations (evaluate.go). Output: for each, the list of the alerts that have fired.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

type output struct {
	Errors  []string `json:"errors"`
	Metrics []string `json:"metrics"`
}

// metricsOf returns the names of the metrics in an expression.
func metricsOf(expression string) ([]string, error) {
	parsed, err := parser.ParseExpr(expression)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", expression, err)
	}
	var names []string
	for _, matchers := range parser.ExtractSelectors(parsed) {
		for _, matcher := range matchers {
			if matcher.Name == labels.MetricName && matcher.Type == labels.MatchEqual {
				names = append(names, matcher.Value)
			}
		}
	}
	return names, nil
}

func main() {
	groups, errs := rulefmt.ParseFile(os.Args[1], false, model.UTF8Validation)
	var result any
	var err error
	if len(os.Args) > 2 && os.Args[2] == "evaluate" {
		result, err = evaluateAll(groups, errs)
	} else {
		result, err = check(groups, errs)
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func evaluateAll(groups *rulefmt.RuleGroups, errs []error) ([][]alert, error) {
	var evaluations []evaluation
	if err := errors.Join(append(errs, json.NewDecoder(os.Stdin).Decode(&evaluations))...); err != nil {
		return nil, err
	}
	results := make([][]alert, len(evaluations))
	for index, given := range evaluations {
		fired, err := evaluate(groups, given)
		if err != nil {
			return nil, err
		}
		results[index] = fired
	}
	return results, nil
}

func check(groups *rulefmt.RuleGroups, errs []error) (output, error) {
	result := output{Errors: []string{}, Metrics: []string{}}
	for _, err := range errs {
		result.Errors = append(result.Errors, err.Error())
	}
	var expressions []string
	if err := json.NewDecoder(os.Stdin).Decode(&expressions); err != nil {
		return result, err
	}
	if groups != nil {
		for _, group := range groups.Groups {
			for _, rule := range group.Rules {
				expressions = append(expressions, rule.Expr)
			}
		}
	}
	for _, expression := range expressions {
		names, err := metricsOf(expression)
		if err != nil {
			result.Errors = append(result.Errors, err.Error())
		}
		result.Metrics = append(result.Metrics, names...)
	}
	slices.Sort(result.Metrics)
	result.Metrics = slices.Compact(result.Metrics)
	return result, nil
}
