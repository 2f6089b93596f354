# cmake -DOUT=pages.cpp -DFOLDER=launch/web -P embed.cmake: the pages as constants of the program.
set(text "#include <string_view>\n\nnamespace shoal {\n\nextern const std::string_view chat_page, status_page;\n")
foreach(name chat status)
  file(READ "${FOLDER}/${name}.html" page)
  string(APPEND text "const std::string_view ${name}_page = R\"~page~(${page})~page~\";\n")
endforeach()
file(WRITE "${OUT}" "${text}\n}  // namespace shoal\n")
