{{/*
The effective values.

Helm gives a template its chart's defaults and the user's values merged into one, so that nothing can come between
the two. Hence the defaults stand below a key of their own (values.yaml), where the user sets nothing, and the layers are
put together here, later ones winning:

  defaults < profile < compatibilityVersion < platform < global.* as if at the top level < the user's own

Maps are merged key by key; everything else replaces what was there, be it empty, false, zero or null.

Every template begins with `include "ztunnel.values" .`, which replaces .Values by the outcome; again is harmless.
*/}}
{{- define "ztunnel.values" -}}
{{- $key := "_internal_defaults_do_not_set" }}
{{- if hasKey .Values $key }}
  {{- if .Values.defaults }}
    {{- fail (printf "values below `defaults` have no effect; set them without it (hub instead of defaults.hub):\n%s" (toYaml .Values.defaults)) }}
  {{- end }}
  {{- $values := deepCopy (index .Values $key) }}
  {{- $user := omit .Values $key | deepCopy }}
  {{- $user_global := $user.global | default dict | deepCopy }}
  {{- $presets := .Files.Get "files/presets.yaml" | fromYaml }}
  {{- $global := dict }}
  {{- range list "profile" "compatibilityVersion" "platform" }}
    {{- $name := coalesce (get $user .) (get $user_global .) (get $values .) | default "" | toString }}
    {{- if $name }}
      {{- $known := get $presets . }}
      {{- if not (hasKey $known $name) }}
        {{- fail (printf "unknown %s %q; known are: %s" . $name (keys $known | sortAlpha | join ", ")) }}
      {{- end }}
      {{- $preset := get $known $name }}
      {{- $_ := mustMergeOverwrite $values $preset }}
      {{- $_ := mustMergeOverwrite $global (get $preset "global" | default dict) }}
    {{- end }}
  {{- end }}
  {{- $_ := mustMergeOverwrite $values $global $user_global $user }}
  {{- $_ := set . "Values" $values }}
{{- end }}
{{- end }}
