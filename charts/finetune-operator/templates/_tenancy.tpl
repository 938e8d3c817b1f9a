{{/*
The rules of tenancy as CEL: what operator/finetune_operator/tenancy/ says in Python, for the API server to say earlier.

Every rule is a map from its fields to lists of text, which is JSON and CEL at once. A claim is a list of three texts:
the field of the rule that limits it, the field of the custom resource that asks for it, and what it asks for.
tests/controlplane/test_tenancy_policy.py holds both languages to the same answers, word for word.
*/}}
{{- define "finetune.tenancy.rules" -}}
{{- $rules := list -}}
{{- range .Values.tenancy.rules -}}
  {{- $rule := dict -}}
  {{- range $field, $value := . -}}
    {{- if kindIs "slice" $value -}}
      {{- $_ := set $rule $field $value -}}
    {{- else if not (kindIs "invalid" $value) -}}
      {{- $_ := set $rule $field (list (toString $value) (printf "%.2f" (float64 $value))) -}}
    {{- end -}}
  {{- end -}}
  {{- if hasKey $rule "inputs" -}}
    {{- $_ := set $rule "inputs" (concat $rule.inputs (default (list) $rule.outputs)) -}}
  {{- end -}}
  {{- $rules = append $rules $rule -}}
{{- else -}}
  {{- $free := list -}}
  {{- range $name, $profile := .Values.profiles -}}
    {{- if not (include "finetune.tenancy.price" $profile) -}}
      {{- $free = append $free $name -}}
    {{- end -}}
  {{- end -}}
  {{- $rules = list (dict "namespaces" (list "*") "profiles" $free) -}}
{{- end -}}
{{- toJson $rules -}}
{{- end -}}

{{/* Empty for a profile without a price. */}}
{{- define "finetune.tenancy.price" -}}
{{- with .gpu -}}
{{- if gt (mulf (default 1 .count) .usdPerHour) 0.0 -}}priced{{- end -}}
{{- end -}}
{{- end -}}

{{/* Names of the profiles with a price. */}}
{{- define "finetune.tenancy.priced" -}}
{{- $names := list -}}
{{- range $name, $profile := .Values.profiles -}}
  {{- if include "finetune.tenancy.price" $profile -}}
    {{- $names = append $names $name -}}
  {{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* Not empty if one of the `rules` allows a `namespace` a `name` in the rule's `field`: profiles or runtimes. */}}
{{- define "finetune.tenancy.offers" -}}
{{- range $rule := .rules -}}
  {{- if include "finetune.tenancy.matches" (list $rule.namespaces $.namespace) -}}
    {{- if not (hasKey $rule $.field) -}}offered
    {{- else if include "finetune.tenancy.matches" (list (get $rule $.field) $.name) -}}offered
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Not empty if one of a list of globs matches a name: list of both. */}}
{{- define "finetune.tenancy.matches" -}}
{{- range first . -}}
  {{- if regexMatch (printf "^%s$" (replace "*" ".*" .)) (last $) -}}matched{{- end -}}
{{- end -}}
{{- end -}}

{{/* How the place whose path is given is reached, as entries of its map: the store, where it has one of its own. */}}
{{- define "finetune.tenancy.storage" -}}
?'endpoint': {{ . }}.?storage.optMap(s, string(s.?endpoint.orValue(''))),
?'secret': {{ . }}.?storage.?secretRef.?name.optMap(s, string(s))
{{- end -}}

{{/* The same of a place that is read, with its URI and its token. */}}
{{- define "finetune.tenancy.read" -}}
?'uri': {{ . }}.?uri.optMap(s, string(s)),
?'token': {{ . }}.?secretKeyRef.?name.optMap(s, string(s)),
{{ include "finetune.tenancy.storage" . }}
{{- end -}}

{{/* Where a FineTuneJob `o` writes and reads: a map of texts for each place, in the order of the operator's claims. */}}
{{- define "finetune.tenancy.places" -}}
[
  {
    'field': 'spec',
    'endpoint': string(o.spec.?storage.?endpoint.orValue('')),
    'secret': string(o.spec.?storage.?secretRef.?name.orValue(''))
  },
  {
    'field': 'spec.output',
    {{- include "finetune.tenancy.storage" "o.spec.output" | nindent 4 }}
  },
  {
    'field': 'spec.model',
    {{- include "finetune.tenancy.read" "o.spec.model" | nindent 4 }}
  }
]
{{- range list "sources" "benchmarks" }}
+ {{ toJson (until 16) }}.filter(i, i < size(o.spec.dataset.?{{ . }}.orValue([]))).map(i, {
    'field': 'spec.dataset.{{ . }}[' + string(i) + ']',
    {{- include "finetune.tenancy.read" (printf "o.spec.dataset.%s[i]" .) | nindent 4 }}
  })
{{- end }}
+ [
  {
    'field': 'spec.dataset.replay.source',
    {{- include "finetune.tenancy.read" "o.spec.dataset.?replay.?source" | nindent 4 }}
  },
  {
    'field': 'spec.dataset.pii.ner',
    ?'uri': o.spec.dataset.?pii.?ner.?uri.optMap(s, string(s)),
    {{- include "finetune.tenancy.storage" "o.spec.dataset.?pii.?ner" | nindent 4 }}
  }
]
+ {{ toJson (until 8) }}.filter(i, i < size(o.spec.?evaluation.?metrics.orValue([]))).map(i, {
    'field': 'spec.evaluation.metrics[' + string(i) + '].data',
    ?'uri': o.spec.evaluation.metrics[i].?data.?uri.optMap(s, string(s)),
    {{- include "finetune.tenancy.storage" "o.spec.evaluation.metrics[i].?data" | nindent 4 }}
  })
{{- end -}}

{{/* What a FineTuneJob `o` asks for: operator/finetune_operator/finetunejob/claims.py. Each store is three claims,
which are counted, because CEL cannot join lists of lists: of the 33 places (16 sources, 4 benchmarks, 8 metrics, 5 others), 99. */}}
{{- define "finetune.tenancy.finetunejobs" -}}
[{{ include "finetune.tenancy.places" . | nindent 2 }}
].map(places, [
  ['profiles', 'spec.profile', string(o.spec.profile)],
  ['outputs', 'spec.output.uri', string(o.spec.output.uri)]
]
+ [places.filter(p, 'endpoint' in p)].map(stores,
  {{ toJson (until 99) }}.filter(n, n / 3 < size(stores)).map(n, [
    ['endpoints', 'insecureHosts', 'secrets'][n % 3],
    stores[n / 3].field + ['.storage.endpoint', '.storage.endpoint', '.storage.secretRef.name'][n % 3],
    stores[n / 3][?['endpoint', 'endpoint', 'secret'][n % 3]].orValue('')
  ]))[0]
+ places.filter(p, 'token' in p).map(p, ['secrets', p.field + '.secretKeyRef.name', p.token])
+ [
  ['secrets', 'spec.output.signing.secretKeyRef.name', string(o.spec.output.?signing.?secretKeyRef.?name.orValue(''))]
]
+ {{ toJson (until 12) }}.filter(n, n / 3 < size(o.spec.output.?pushTo.orValue([]))).map(n, [
    ['hosts', 'insecureHosts', 'secrets'][n % 3],
    'spec.output.pushTo[' + string(n / 3) + '].' + (has(o.spec.output.pushTo[n / 3].oci)
      ? 'oci.' + ['registry', 'registry', 'secretRef.name'][n % 3]
      : 'huggingFace.' + ['endpoint', 'endpoint', 'secretKeyRef.name'][n % 3]),
    has(o.spec.output.pushTo[n / 3].oci)
      ? (n % 3 < 2 ? string(o.spec.output.pushTo[n / 3].oci.registry)
        : string(o.spec.output.pushTo[n / 3].oci.?secretRef.?name.orValue('')))
      : (n % 3 < 2 ? string(o.spec.output.pushTo[n / 3].?huggingFace.?endpoint.orValue('https://huggingface.co'))
        : string(o.spec.output.pushTo[n / 3].?huggingFace.?secretKeyRef.?name.orValue('')))
  ])
+ [
  {{- range $field, $path := dict "spec.dataset.distillation.teacher" "o.spec.dataset.?distillation.?teacher"
    "spec.evaluation.judge.endpoint" "o.spec.?evaluation.?judge.?endpoint"
    "spec.evaluation.baseline.endpoint" "o.spec.?evaluation.?baseline.?endpoint" }}
  ['hosts', '{{ $field }}.url', string({{ $path }}.?url.orValue(''))],
  ['insecureHosts', '{{ $field }}.url', string({{ $path }}.?url.orValue(''))],
  ['secrets', '{{ $field }}.secretKeyRef.name', string({{ $path }}.?secretKeyRef.?name.orValue(''))],
  {{- end }}
  {{- range $server, $fields := dict "mlflow" (list "url" "secretRef") "wandb" (list "baseUrl" "secretKeyRef") }}
  {{- $path := printf "o.spec.?tracking.?%s" $server }}
  {{- $url := first $fields }}
  {{- $secret := last $fields }}
  ['hosts', 'spec.tracking.{{ $server }}.{{ $url }}', string({{ $path }}.?{{ $url }}.orValue(''))],
  ['insecureHosts', 'spec.tracking.{{ $server }}.{{ $url }}', string({{ $path }}.?{{ $url }}.orValue(''))],
  ['secrets', 'spec.tracking.{{ $server }}.{{ $secret }}.name', string({{ $path }}.?{{ $secret }}.?name.orValue(''))],
  {{- end }}
]
+ places.filter(p, 'uri' in p).map(p, ['inputs', p.field + '.uri', p.uri])
+ (o.spec.profile in {{ include "finetune.tenancy.priced" . }}
  ? [['maxUsdPerRun', 'spec.budget.maxCost', string(o.spec.?budget.?maxCost.orValue(''))]] : []))[0]
{{- end -}}

{{/* What an AdapterDeployment `o` asks for: operator/finetune_operator/adapterdeployment/claims.py. Of one that follows a
FineTuneJob, only the operator knows what that has published, and where. */}}
{{- define "finetune.tenancy.adapterdeployments" -}}
[['runtimes', 'spec.runtime', string(o.spec.runtime)],
 ['secrets', 'spec.access.apiKeys.secretRef.name', string(o.spec.?access.?apiKeys.?secretRef.?name.orValue(''))],
 ['secrets', 'spec.access.tls.secretRef.name', string(o.spec.?access.?tls.?secretRef.?name.orValue(''))]]
{{- $http := "o.spec.?access.?route.?httpRoute" }}
+ {{ toJson (until 4) }}.filter(n, n < size({{ $http }}.?parentRefs.orValue([]))).map(n,
  ['gateways', 'spec.access.route.httpRoute.parentRefs[' + string(n) + ']', {{ $http }}.?parentRefs.orValue([]).map(p,
    string(p.?namespace.orValue(request.namespace)) + '/' + string(p.name))[n]])
+ {{ toJson (until 4) }}.filter(n, n < size({{ $http }}.?hostnames.orValue([]))).map(n,
  ['hostnames', 'spec.access.route.httpRoute.hostnames[' + string(n) + ']', string({{ $http }}.?hostnames.orValue([])[n])])
+ [
{{- with "o.spec.?access.?route.?ingress" }}
  ['ingressClasses', 'spec.access.route.ingress.className', string({{ . }}.?className.orValue(''))],
  ['hostnames', 'spec.access.route.ingress.host', string({{ . }}.?host.orValue(''))],
  ['secrets', 'spec.access.route.ingress.tlsSecretRef.name', string({{ . }}.?tlsSecretRef.?name.orValue(''))]
{{- end }}
]
+ (has(o.spec.source.artifact) ? [
{{- with "spec.source.artifact" }}
  ['inputs', '{{ . }}.uri', string(o.{{ . }}.uri)],
  ['endpoints', '{{ . }}.storage.endpoint', string(o.{{ . }}.?storage.?endpoint.orValue(''))],
  ['insecureHosts', '{{ . }}.storage.endpoint', string(o.{{ . }}.?storage.?endpoint.orValue(''))],
  ['secrets', '{{ . }}.storage.secretRef.name', string(o.{{ . }}.?storage.?secretRef.?name.orValue(''))]
{{- end }}
] : [])
+ (has(o.spec.source.output) ? [
{{- with "spec.source.output" }}
  ['inputs', '{{ . }}.uri', string(o.{{ . }}.uri)],
  ['endpoints', '{{ . }}.storage.endpoint', string(o.{{ . }}.?storage.?endpoint.orValue(''))],
  ['insecureHosts', '{{ . }}.storage.endpoint', string(o.{{ . }}.?storage.?endpoint.orValue(''))],
  ['secrets', '{{ . }}.storage.secretRef.name', string(o.{{ . }}.?storage.?secretRef.?name.orValue(''))]
{{- end }}
] : [])
{{- $adapters := "o.spec.source.?adapters.orValue([])" }}
{{- range $kind := list "artifact" "output" }}
+ {{ toJson (until 32) }}.filter(n, n / 4 < size({{ $adapters }}) && has({{ $adapters }}[n / 4].{{ $kind }})).map(n, [
  ['inputs', 'endpoints', 'insecureHosts', 'secrets'][n % 4],
  'spec.source.adapters[' + string(n / 4) + '].{{ $kind }}.'
    + ['uri', 'storage.endpoint', 'storage.endpoint', 'storage.secretRef.name'][n % 4],
  n % 4 == 0 ? string({{ $adapters }}[n / 4].{{ $kind }}.uri)
    : n % 4 == 3 ? string({{ $adapters }}[n / 4].{{ $kind }}.?storage.?secretRef.?name.orValue(''))
    : string({{ $adapters }}[n / 4].{{ $kind }}.?storage.?endpoint.orValue(''))
])
{{- end }}
{{- end -}}

{{/* Whether rule `r` allows claim `c`, whose fourth text is what has to be compared. */}}
{{- define "finetune.tenancy.allows" -}}
c[0] == 'insecureHosts' ? (
  c[2].lowerAscii().startsWith('https://')
  || c[3].matches('^([a-z][-a-z0-9]*|[-a-z0-9.]+[.]svc([.]cluster[.]local)?)$')
  || r[?'endpoints'].orValue([]).exists(e, e.lowerAscii() == c[2].lowerAscii())
  || r[?'insecureHosts'].orValue([]).exists(g, c[3].matches('^' + g.replace('.', '[.]').replace('*', '.*') + '$'))
)
: !(c[0] in r) ? true
: c[0] == 'maxUsdPerRun' ? c[2] != '' && double(c[2]) <= double(r[c[0]][0])
: c[0] == 'endpoints' ? r[c[0]].exists(e, e.lowerAscii() == c[3])
: c[0] in ['inputs', 'outputs'] ? !c[3].matches('://(.*/)?[.]{0,2}/') && r[c[0]].exists(p, c[3].startsWith(
    (p.startsWith('hf:') ? p.replace('@', '/@', 1) : p).replace('{namespace}', request.namespace)
    + (p.endsWith('/') ? '' : '/')))
: r[c[0]].exists(g, c[3].matches('^'
    + g.replace('{namespace}', request.namespace).replace('.', '[.]').replace('*', '.*') + '$'))
{{- end -}}

{{/* What rule `r` would allow instead of claim `c`. */}}
{{- define "finetune.tenancy.words" -}}
c[0] == 'insecureHosts' ? 'https:// outside of the cluster' + (size(r[?'insecureHosts'].orValue([])) == 0
  ? '' : ', or http:// to ' + {{ include "finetune.tenancy.choices" "r.insecureHosts" }})
: c[0] == 'maxUsdPerRun' ? 'at most ' + r[c[0]][1] + ' USD a run'
: size(r[c[0]]) == 0 ? 'none'
: (c[0] in ['inputs', 'outputs'] ? 'URIs below ' : c[0] == 'hosts' ? 'the host ' : '')
  + {{ include "finetune.tenancy.choices" "r[c[0]]" }}
{{- end -}}

{{/* The first eight of a list of texts, and how many there are besides: _one_of in tenancy/verdict.py. */}}
{{- define "finetune.tenancy.choices" -}}
[{{ . }}].map(l, ({{ toJson (until 8) }}.filter(i, i < size(l)).map(i,
    l[i] == 'AWS' ? 'none (AWS)' : l[i].replace('{namespace}', request.namespace))
  + (size(l) > 8 ? [string(size(l) - 8) + ' more'] : [])).join(' or '))[0]
{{- end -}}
